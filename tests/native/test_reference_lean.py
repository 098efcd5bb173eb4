"""The lean score function of the reference against that in torch."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from restkv_local.reference import score, score_lean
from score_cases import assert_same_sets, assert_scores_close, gapped_positions, random_arrays

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduce": "mean", "scale": 15, "kernel": 5},
    {"reduce": "max", "scale": 3, "kernel": 3, "alpha": None},
    {"metric_mode": "before", "pooling": "avgpool", "kernel": 7},
    {"metric_mode": "before", "use_norm": True, "use_wo": False, "scale": 10},
    {"metric_mode": "before", "use_norm": True, "use_ema": False, "pooling": "maxpool", "kernel": 3},
    {"tau": 0.5, "pooling": "none"},
    {"tau": 2.0, "use_ema": False, "pooling": "maxpool", "kernel": 9},
    {"use_wo": False, "tau": 0.5, "pooling": "avgpool"},
    {"method": "snapkv", "pooling": "avgpool", "kernel": 5},
    {"method": "snapkv", "pooling": "adaptive", "scale": 20, "reduce": "mean"},
    {"method": "random", "seed": 2**64 - 1, "layer": 5, "reduce": "max"},
    {"method": "streamingllm"},
    {"method": "tova"},
    {"method": "h2o"},
    {"method": "fifo"},
    {"method": "knorm", "reduce": "mean"},
    {"method": "keydiff"},
    {"method": "lacache", "num_layers": 6, "layer": 3},
    {"indicator": "attention", "rows": "sum", "scale": 10},
    {"indicator": "attention-value-norm", "rows": "inverted-ema"},
    {"indicator": "attention", "rows": "max", "scale": 10},
    {"indicator": "attention-value-norm", "rows": "max", "reduce": "max"},
    {"rows": "inverted-ema", "scale": 10},
    {"rows": "last", "metric_mode": "before"},
    {"use_pyramid": True, "layer_idx": 2, "num_layers": 6, "scale": 10},
    {"attn_scale": 0.3, "softcap": 4.0, "scale": 10},
]
SHAPES: list[dict[str, int]] = [
    {},
    {"heads": 8, "kv_heads": 1, "n": 133, "d": 64, "c": 20},
    {"heads": 3, "kv_heads": 3, "n": 97, "d": 80, "window": 2},
]


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("options", range(len(OPTIONS)))
def test_lean_equals_torch(options: int, shape: int, gaps: bool) -> None:
    arrays: dict[str, Any] = random_arrays(options, **SHAPES[shape])
    window, (kv_heads, n, _) = SHAPES[shape].get("window", 16), arrays["k"].shape
    if gaps:
        arrays["pos"] = gapped_positions(options, kv_heads, n, window)
    parameters: dict[str, Any] = {"budget": window + 30, "window": window, **OPTIONS[options]}
    want, got = score(**arrays, **parameters), score_lean(**arrays, **parameters)
    assert_scores_close(got[0], want[0], 1e-6)
    assert_scores_close(got[1], want[1], 1e-6)
    np.testing.assert_array_equal(got[3], want[3])
    np.testing.assert_array_equal(got[4], want[4])
    reduced = want[1]
    if parameters.get("reduce"):
        groups = reduced.reshape(kv_heads, -1, reduced.shape[1])
        reduced = groups.mean(axis=1) if parameters["reduce"] == "mean" else groups.max(axis=1)
    assert_same_sets(got[2], want[2], reduced, 1e-6)


def test_lean_with_sinks_and_guide() -> None:
    arrays: dict[str, Any] = random_arrays(3, n=150, window=16)
    arrays["q_win"] = arrays["q_win"][:, :6]  # the guide left six queries
    common: dict[str, Any] = {"budget": 50, "window": 16, "n_tail": 22, "sinks": np.array([0.5, 3.0, -2.0, 9.0])}
    want, got = score(**arrays, **common, scale=10), score_lean(**arrays, **common, scale=10)
    assert want[0].shape == (4, 128)
    assert_scores_close(got[0], want[0], 1e-6)
    np.testing.assert_array_equal(got[2], want[2])
    # a sink takes part of the attention
    assert (score(**arrays, **{**common, "sinks": None}, scale=10)[0].sum(axis=1) > want[0].sum(axis=1)).all()


def test_lean_at_131072_cells() -> None:
    n, window, heads, d = 131072, 32, 4, 8
    rng = np.random.default_rng(0)
    q = rng.standard_normal((heads, window, d), dtype=np.float32)
    k, v = rng.standard_normal((2, 2, n, d), dtype=np.float32)
    wo = rng.standard_normal((16, heads * d), dtype=np.float32)
    tracemalloc.start()
    raw, smoothed, indices, _, _ = score_lean(q, k, v, wo, budget=1024, window=window, reduce="mean")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert raw.shape == smoothed.shape == (heads, n - window)
    assert np.isfinite(smoothed).all() and (raw > 0).all()
    assert indices.shape == (2, 1024 - window) and indices.max() > n // 2
    assert peak < heads * window * n * 4, "attention of all rows was held at once"
