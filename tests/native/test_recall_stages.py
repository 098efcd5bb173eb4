"""The choice of a recall on arrays: the library against the reference, stage by stage of the same definition."""

from __future__ import annotations

import ctypes
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from restkv_local import native
from restkv_local.reference.recall import RecallSettings, recall_score
from stock import GGML_TYPES

pytestmark = pytest.mark.usefixtures("library")

# Scores that lie nearer than this may come out in another order: sums of float32 in another order.
NEAR = 1e-6


class Case:
    """Random rows. Keys are exact in F16; some queries look for one position, as those of a fact do."""

    def __init__(self, *, heads: int = 4, kv: int = 2, d: int = 32, n: int = 700, n_own: int = 20, queries: int = 30,
                 seed: int = 0) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        self.heads, self.kv, self.d, self.n, self.n_own = heads, kv, d, n, n_own
        self.k = rng.normal(size=(n, kv, d)).astype(np.float16)
        self.own = rng.normal(size=(n_own, kv, d)).astype(np.float16)
        self.q = rng.normal(size=(heads, queries, d)).astype(np.float32)
        for i in range(0, queries, 3):
            self.q[:, i] += 3 * np.repeat(self.k[rng.integers(n)], heads // kv, axis=0)
        self.row_pos = np.arange(n + n_own - queries, n + n_own, dtype=np.int32)

    def native(self, budget: int, window: int, *, kind: str = "f16", threads: int = 1, softcap: float = 0.0,
               sinks: np.ndarray | None = None, settings: RecallSettings | None = None, device: str = "",
               tile_floats: int = 0) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Scores and chosen positions, on the CPU's threads or by graphs on a device."""
        settings = settings or RecallSettings()
        k, own = (rows_as(x, kind) for x in (self.k, self.own))
        scores = np.empty((self.kv, self.n), np.float32)
        chosen = np.empty((self.kv, min(budget, self.n)), np.int32)
        args = native.RecallArgs(
            n_head=self.heads, n_head_kv=self.kv, n_embd_head=self.d, n_queries=self.q.shape[1], n_archive=self.n,
            n_own=self.n_own, n_rows=settings.n_rows, kernel=settings.kernel, sinks=settings.sinks, window=window,
            budget=budget, n_threads=threads, type_k=GGML_TYPES[kind], attn_scale=0.0, softcap=softcap,
            q=address(self.q), row_pos=address(self.row_pos), k=address(k), k_own=address(own),
            attn_sinks=None if sinks is None else address(sinks),
        )  # fmt: skip
        out = address(scores), address(chosen)
        if device:
            native.check(native.lib().restkv_recall_score_on(ctypes.byref(args), device.encode(), tile_floats, *out))
        else:
            native.check(native.lib().restkv_recall_score(ctypes.byref(args), *out))
        return scores, chosen

    def reference(self, budget: int, window: int, *, softcap: float = 0.0, sinks: np.ndarray | None = None,
                  settings: RecallSettings | None = None) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        k, own = (torch.from_numpy(x.astype(np.float32)).transpose(0, 1) for x in (self.k, self.own))
        scores, chosen = recall_score(
            torch.from_numpy(self.q), torch.from_numpy(self.row_pos).long(), k, own, budget=budget, window=window,
            settings=settings or RecallSettings(), attn_scale=self.d**-0.5, softcap=softcap,
            sinks=None if sinks is None else torch.from_numpy(sinks),
        )  # fmt: skip
        return scores.numpy(), chosen.numpy()


def rows_as(x: np.ndarray, kind: str) -> np.ndarray:
    """Rows in a type of ggml."""
    if kind == "f16" or not x.size:
        return np.ascontiguousarray(x)
    return np.ascontiguousarray(gguf.quantize(x.astype(np.float32), gguf.GGMLQuantizationType[kind.upper()]))


def address(x: Any) -> int:
    return int(x.ctypes.data)


def check(ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-5, atol=1e-9)
    for h, (a, b) in enumerate(zip(ours[1], theirs[1], strict=True)):
        differ = np.setxor1d(a, b)
        # what is in one set alone lies at the cut
        spread = np.ptp(theirs[0][h][differ]) if len(differ) else 0.0
        assert spread <= NEAR * theirs[0][h].max(), differ
        assert np.all(np.diff(a) > 0)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"heads": 6, "kv": 1, "d": 64, "n": 1025},
        {"heads": 3, "kv": 3, "d": 96, "n": 129, "n_own": 0, "queries": 7},
        {"heads": 2, "kv": 2, "d": 256, "n": 511, "queries": 1, "n_own": 1},
        {"heads": 8, "kv": 2, "d": 40, "n": 2049, "n_own": 600, "queries": 64},
        {"n": 63, "queries": 200, "n_own": 150},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_shapes(shape: dict[str, int], kind: str) -> None:
    case = Case(**shape)
    check(case.native(60, 16, kind=kind), case.reference(60, 16))


def test_soft_cap_and_attention_sinks() -> None:
    case = Case(heads=4, kv=2)
    sinks = np.array([1.0, -2.0, 6.0, 0.0], np.float32)
    check(case.native(90, 8, softcap=2.5, sinks=sinks), case.reference(90, 8, softcap=2.5, sinks=sinks))


@pytest.mark.parametrize("settings", [{"n_rows": 1}, {"kernel": 1, "sinks": 0}, {"kernel": 999}, {"n_rows": 500}])
def test_settings(settings: dict[str, int]) -> None:
    case, chosen = Case(), RecallSettings(**settings)
    check(case.native(64, 4, settings=chosen), case.reference(64, 4, settings=chosen))


def test_more_logits_than_are_held_at_once() -> None:
    """KV heads are scored a few at a time; threads share the panels; nothing depends on either."""
    case = Case(heads=8, kv=4, n=70_000, queries=40)
    one, three = case.native(500, 32), case.native(500, 32, threads=3)
    assert all(np.array_equal(a, b) for a, b in zip(one, three, strict=True))
    check(one, case.reference(500, 32))


def test_a_query_that_is_no_number_decides_nothing() -> None:
    case = Case()
    case.q[1, 5] = np.nan
    scores, chosen = case.native(60, 16)
    assert np.isfinite(scores).all() and (np.diff(chosen, axis=1) > 0).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_head", 3), ("n_head_kv", 0), ("n_archive", 0), ("kernel", 2), ("budget", 20), ("type_k", 99), ("q", None)],
)
def test_bad_arguments_are_refused(field: str, value: int | None) -> None:
    case = Case()
    scores, chosen = np.empty((2, 700), np.float32), np.empty((2, 700), np.int32)
    fields = {
        "n_head": 4, "n_head_kv": 2, "n_embd_head": 32, "n_queries": 30, "n_archive": 700, "n_rows": 16, "kernel": 21,
        "sinks": 4, "window": 16, "budget": 60, "type_k": 1, "q": address(case.q), "row_pos": address(case.row_pos),
        "k": address(case.k),
    }  # fmt: skip
    args = native.RecallArgs(**{**fields, field: value})
    status = native.lib().restkv_recall_score(ctypes.byref(args), address(scores), address(chosen))
    assert status == native.INVALID and native.failure() is not None
