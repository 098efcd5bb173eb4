"""The native stages through ctypes: select, compact, and scores against the reference."""

from __future__ import annotations

import ctypes as C
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restkv_local import native
from restkv_local.config import EvictConfig
from restkv_local.errors import ConfigError
from restkv_local.native import kernels
from restkv_local.reference import score, score_lean
from restkv_local.reference.select import select
from score_cases import assert_same_sets, assert_scores_close, gapped_positions, native_missing, random_arrays

needs_library = pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))


# ---- select -------------------------------------------------------------------------------------


@needs_library
@settings(max_examples=100, deadline=None)
@given(data=st.data(), n=st.integers(1, 80), distinct=st.sampled_from([1, 3, 1000]))
def test_select(data: st.DataObject, n: int, distinct: int) -> None:
    row = np.array(data.draw(st.lists(st.integers(-distinct, distinct), min_size=n, max_size=n)), np.float32)
    n_keep = data.draw(st.integers(0, n))
    best_first = sorted(range(n), key=lambda j: (-row[j], j))
    assert kernels.select(row, n_keep).tolist() == sorted(best_first[:n_keep])


@needs_library
def test_select_extremes_and_size() -> None:
    big = np.finfo(np.float32).max
    row = np.array([0.0, big, -big, 1e-45, big, -0.0], np.float32)
    assert kernels.select(row, 3).tolist() == [1, 3, 4]
    assert kernels.select(row, 4).tolist() == [0, 1, 3, 4]  # 0 and -0 are equal
    row = np.random.default_rng(0).random(131072, dtype=np.float32)
    np.testing.assert_array_equal(kernels.select(row, 1000), select(row[None], 1000)[0])


# ---- compact ------------------------------------------------------------------------------------

# bytes of `d` values
ROW_BYTES = {"f32": lambda d: 4 * d, "f16": lambda d: 2 * d, "bf16": lambda d: 2 * d, "q8_0": lambda d: d // 32 * 34,
             "q4_0": lambda d: d // 32 * 18}  # fmt: skip


@needs_library
@pytest.mark.parametrize("kv_type", ROW_BYTES)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), n=st.integers(1, 40), kv_heads=st.integers(1, 3), d=st.sampled_from([64, 96, 128, 256]))
def test_compact_moves_raw_bytes(kv_type: str, data: st.DataObject, n: int, kv_heads: int, d: int) -> None:
    """One KV head's slice of the rows moves, all other bytes stay."""
    width = ROW_BYTES[kv_type](d)
    head = data.draw(st.integers(0, kv_heads - 1))
    src = sorted(data.draw(st.lists(st.integers(0, n - 1), unique=True)))
    before = np.random.default_rng(n).integers(0, 256, (n, kv_heads * width), dtype=np.uint8)
    rows = before.copy()
    kernels.compact(rows, np.array(src, np.int32), offset=head * width, n_bytes=width)
    mine = slice(head * width, (head + 1) * width)
    expected = before.copy()
    expected[: len(src), mine] = before[src, mine]
    np.testing.assert_array_equal(rows, expected)


@needs_library
def test_compact_refusals() -> None:
    rows = np.zeros((8, 16), np.uint8)
    for src in ([3, 2], [2, 2], [1, 0], [-1]):
        with pytest.raises(ConfigError, match="ascending"):
            kernels.compact(rows, np.array(src, np.int32))
    with pytest.raises(ConfigError, match="src names cell 8"):
        kernels.compact(rows, np.array([8], np.int32))
    with pytest.raises(ConfigError, match="inside a row of 16 bytes"):
        kernels.compact(rows, np.array([1], np.int32), offset=10, n_bytes=7)


# ---- score against the reference ----------------------------------------------------------------

SHAPES: list[dict[str, int]] = [
    {"heads": 1, "kv_heads": 1, "d": 64, "n": 131, "c": 48},  # W_o of lower rank than the head
    {"heads": 4, "kv_heads": 4, "d": 80, "n": 257, "window": 2, "c": 160},
    {"heads": 4, "kv_heads": 2, "d": 96, "n": 1023, "window": 32, "c": 192},
    {"heads": 3, "kv_heads": 1, "d": 128, "n": 1030, "window": 64, "c": 200},
    {"heads": 8, "kv_heads": 1, "d": 256, "n": 300, "window": 8, "c": 300},
    {"heads": 6, "kv_heads": 2, "d": 32, "n": 2111, "window": 6},
    {"heads": 7, "kv_heads": 1, "d": 16, "n": 5003, "window": 10, "c": 40},
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduce": "mean", "scale": 40, "kernel": 5},
    {"reduce": "max", "scale": 11, "kernel": 3, "alpha": None},
    {"metric_mode": "before", "pooling": "avgpool", "kernel": 7},
    {"metric_mode": "before", "use_norm": True, "scale": 30},
    {"metric_mode": "before", "use_norm": True, "use_wo": False, "use_ema": False, "pooling": "none"},
    {"tau": 0.5, "pooling": "maxpool", "kernel": 9},
    {"tau": 2.0, "use_ema": False, "pooling": "avgpool", "kernel": 1},
    {"use_wo": False, "tau": 0.5, "pooling": "none", "attn_scale": 0.05},
    {"method": "snapkv", "pooling": "avgpool", "kernel": 5, "reduce": "mean"},
    {"method": "snapkv", "pooling": "maxpool", "kernel": 7},
    {"method": "random", "seed": 2**63 + 5, "layer": 31, "reduce": "max"},
    {"method": "streamingllm", "reduce": "mean"},
    {"method": "tova", "reduce": "mean"},
    {"method": "h2o"},
    {"method": "fifo"},
    {"method": "knorm", "reduce": "mean"},
    {"method": "keydiff", "reduce": "mean"},
    {"method": "lacache", "num_layers": 6, "layer": 3},
    {"indicator": "attention", "rows": "sum", "scale": 10},
    {"indicator": "attention-value-norm", "rows": "inverted-ema", "reduce": "mean"},
    {"indicator": "attention", "rows": "max", "scale": 10},
    {"indicator": "attention-value-norm", "rows": "max", "reduce": "max"},
]


def assert_native_equals(want: Any, got: Any, arrays: dict[str, Any], parameters: dict[str, Any]) -> None:
    exact = parameters.get("method") in ("random", "streamingllm", "fifo", "lacache")
    assert_scores_close(got[0], want[0], 0 if exact else 2e-5)
    assert_scores_close(got[1], want[1], 0 if exact else 2e-5)
    np.testing.assert_array_equal(got[3], want[3])
    np.testing.assert_array_equal(got[4], want[4])
    reduced = want[1]
    if parameters.get("reduce"):
        groups = reduced.reshape(len(arrays["k"]), -1, reduced.shape[1])
        reduced = groups.mean(axis=1) if parameters["reduce"] == "mean" else groups.max(axis=1)
    assert_same_sets(got[2], want[2], reduced, 4e-5)


@needs_library
@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("options", range(len(OPTIONS)))
def test_native_equals_reference(options: int, shape: int, gaps: bool) -> None:
    arrays: dict[str, Any] = random_arrays(100 * shape + options, **SHAPES[shape])
    window, (kv_heads, n, _) = SHAPES[shape].get("window", 16), arrays["k"].shape
    if gaps:
        arrays["pos"] = gapped_positions(options, kv_heads, n, window)
    parameters: dict[str, Any] = {"budget": window + 40, "window": window, **OPTIONS[options]}
    want = score_lean(**arrays, **parameters)
    assert_native_equals(want, kernels.score(**arrays, **parameters), arrays, parameters)
    half = {name: arrays[name].astype(np.float16) for name in ("k", "v")}
    assert_native_equals(want, kernels.score(**{**arrays, **half}, **parameters), arrays, parameters)


@needs_library
def test_native_equals_torch() -> None:
    arrays = random_arrays(9, heads=4, kv_heads=2, n=701, d=64, window=32)
    parameters: dict[str, Any] = {"budget": 128, "window": 32, "scale": 50, "reduce": "mean"}
    want = score(**arrays, **parameters)
    assert_native_equals(want, kernels.score(**arrays, **parameters), arrays, parameters)


@needs_library
@pytest.mark.parametrize("reduce", [None, "mean"])
@pytest.mark.parametrize("n", [17, 18, 63, 64, 65])
def test_sizes_around_the_budget(n: int, reduce: str | None) -> None:
    arrays = random_arrays(n, n=n)
    parameters: dict[str, Any] = {"budget": 64, "window": 16, "reduce": reduce, "scale": 7}
    assert_native_equals(score(**arrays, **parameters), kernels.score(**arrays, **parameters), arrays, parameters)


@needs_library
@pytest.mark.parametrize("reduce", [None, "mean", "max"])
def test_pyramid(reduce: str | None) -> None:
    arrays = random_arrays(2, n=400)
    parameters: dict[str, Any] = {"budget": 64, "window": 16, "scale": 20, "reduce": reduce}
    for layer in (0, 5):
        parameters |= {"use_pyramid": True, "layer_idx": layer, "num_layers": 6}
        want, got = score(**arrays, **parameters), kernels.score(**arrays, **parameters)
        assert want[2].shape[1] == {0: 94, 5: 4}[layer]
        assert_native_equals(want, got, arrays, parameters)


@needs_library
@pytest.mark.parametrize("mode", ["after", "before"])
@pytest.mark.parametrize("gap", [8.0, 15.0, 40.0, 80.0, 200.0])
def test_attention_close_to_one(gap: float, mode: str) -> None:
    """A cell that holds nearly all the attention keeps its place, with its true score where float32 can tell."""
    arrays = random_arrays(4, n=300, heads=2, kv_heads=1)
    arrays["k"][0, 111] = 0.0
    arrays["k"][:, :, 0] = 0.0
    arrays["q_win"][:, :, 0] = 1.0
    arrays["k"][0, 111, 0] = gap * np.sqrt(32)
    parameters: dict[str, Any] = {"budget": 26, "window": 16, "metric_mode": mode, "pooling": "none"}
    raw, smoothed, indices, _, _ = kernels.score(**arrays, **parameters)
    assert np.isfinite(raw).all() and np.isfinite(smoothed).all()
    assert (indices == 111).any(axis=1).all()
    if gap < 80:  # beyond, the other weights vanish in float32, and with them the output without the cell
        want = score(**arrays, **parameters)[0]
        np.testing.assert_allclose(raw[:, 111], want[:, 111], rtol=2e-3)


@needs_library
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), size=st.sampled_from([1e-30, 1.0, 1e3, 1e15]),
       v_size=st.sampled_from([0.0, 1.0, 1e38]), mode=st.sampled_from(["after", "before"]),
       norm=st.booleans())  # fmt: skip
def test_never_nan_or_infinite(seed: int, size: float, v_size: float, mode: str, norm: bool) -> None:
    arrays = random_arrays(seed, n=60, d=8, window=4)
    arrays["q_win"] *= np.float32(size)
    arrays["v"] *= np.float32(v_size / np.abs(arrays["v"]).max())
    options: dict[str, Any] = {"metric_mode": mode, "use_norm": norm, "kernel": 3, "scale": 10, "reduce": "mean"}
    raw, smoothed, indices, _, _ = kernels.score(**arrays, budget=20, window=4, **options)
    assert np.isfinite(raw).all() and np.isfinite(smoothed).all()
    assert indices.shape == (2, 16) and (np.diff(indices, axis=1) > 0).all()


def test_refusals_of_kernels() -> None:
    arrays = random_arrays(0)
    for changes, words in (
        ({"backend": "cuda"}, "backend must be .cpu. or .graph:. and the name of a device; got .cuda."),
        ({"kernel": 6}, "kernel must be odd; try 7"),
        ({"window": 15}, "window must be even"),
        ({"n_tail": 30}, "n_tail works in restkv_local.reference only"),
        ({"v": arrays["v"].astype(np.float16)}, "k and v must have the same shape and type"),
    ):
        with pytest.raises(ConfigError, match=words):
            kernels.score(**{**arrays, "budget": 64, "window": 16, **changes})


@needs_library
def test_native_says_what_is_wrong() -> None:
    args, out = native.ScoreArgs(), native.ScoreOut()
    args.params.method = b"magic"
    with pytest.raises(ConfigError, match="unknown eviction method"):
        native.check(native.lib().restkv_score(C.byref(args), C.byref(out)))
    args.params = native.params_from(EvictConfig(), budget=32, capacity=0, n_threads=1)
    with pytest.raises(ConfigError, match="budget"):
        native.check(native.lib().restkv_score(C.byref(args), C.byref(out)))
