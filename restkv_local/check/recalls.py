"""What a recall is checked on: a device attends, and its scores and its choice are those of the CPU's threads."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import native
from ..config import RECALL_KERNEL, RECALL_ROWS, RECALL_SINKS
from ..native.kernels import address
from .cases import TYPES, pack


@dataclass(frozen=True)
class RecallCase:
    """A layer that recalls among `positions`, by the queries of its `own` rows behind them, or of its window.

    type: of its keys; tile: logits that are held at a time, 0 for the default; quick: in the quick check too.
    """

    name: str
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    positions: int = 500
    own: int = 40
    budget: int = 120
    window: int = 16
    type: str = "f16"
    softcap: float = 0.0
    sinks: bool = False
    tile: int = 0
    quick: bool = False


RECALLS: tuple[RecallCase, ...] = (
    RecallCase("recall", quick=True),
    RecallCase("recall, in panels", heads=8, head_size=128, positions=1500, tile=60_000),
    RecallCase("recall, one KV head", kv_heads=1),
    RecallCase("recall, sinks", sinks=True, own=0),
    RecallCase("recall, soft-cap", softcap=3.0),
    RecallCase("recall, q8_0", type="q8_0", quick=True),
    RecallCase("recall, q4_0", type="q4_0"),
    RecallCase("recall, bf16", type="bf16"),
    RecallCase("recall, f32", type="f32"),
)


def run_recall(case: RecallCase, device: str | None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], float]:
    """Scores [kv_heads, positions], what is chosen [kv_heads, budget], and seconds; device None: the CPU's threads.

    Raises ModelError when the device lacks an operation, EvictionError when it fails.
    """
    rng = np.random.default_rng(list(case.name.encode()))
    n = case.positions + case.own
    keys, values = pack(rng.standard_normal((n, case.kv_heads, case.head_size)).astype(np.float32), case.type)
    asked = max(case.own, case.window)
    q = rng.standard_normal((case.heads, asked, case.head_size))
    # every query looks for a position of its own
    wanted = values[rng.integers(0, case.positions, asked)]
    q += 3.0 * np.repeat(wanted, case.heads // case.kv_heads, axis=1).transpose(1, 0, 2) / np.sqrt(case.head_size)
    q = np.ascontiguousarray(q, dtype=np.float32)
    row_pos = np.arange(n - asked, n, dtype=np.int32)
    sinks = rng.standard_normal(case.heads).astype(np.float32) * 2
    own = np.ascontiguousarray(keys[case.positions :])
    scores = np.empty((case.kv_heads, case.positions), np.float32)
    chosen = np.empty((case.kv_heads, min(case.budget, case.positions)), np.int32)
    args = native.RecallArgs(
        n_head=case.heads, n_head_kv=case.kv_heads, n_embd_head=case.head_size, n_queries=asked,
        n_archive=case.positions, n_own=case.own, n_rows=RECALL_ROWS, kernel=RECALL_KERNEL, sinks=RECALL_SINKS,
        window=case.window, budget=case.budget, n_threads=2, type_k=TYPES[case.type], attn_scale=0.0,
        softcap=case.softcap, q=address(q), row_pos=address(row_pos), k=address(keys), k_own=address(own),
        attn_sinks=address(sinks) if case.sinks else None,
    )  # fmt: skip
    out, lib, start = (address(scores), address(chosen)), native.lib(), time.perf_counter()
    if device is None:
        native.check(lib.restkv_recall_score(ctypes.byref(args), *out))
    else:
        native.check(lib.restkv_recall_score_on(ctypes.byref(args), device.encode(), case.tile, *out))
    return scores, chosen, time.perf_counter() - start
