"""The reference score functions: cases worked out by hand, properties of every stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restkv_local.config import EvictConfig
from restkv_local.errors import ConfigError
from restkv_local.reference import score, score_lean
from restkv_local.reference.compact import compact
from restkv_local.reference.params import ScoreParams
from restkv_local.reference.select import select
from restkv_local.reference.smooth import smooth_adaptive, smooth_avgpool, smooth_maxpool
from score_cases import random_arrays

both = pytest.mark.parametrize("function", [score, score_lean], ids=["torch", "lean"])

# One head of size 1, six cells, window 2, all logits 0: row 0 sees five cells, row 1 all six.
UNIFORM: dict[str, Any] = {
    "q_win": np.zeros((1, 2, 1), np.float32),
    "k": np.zeros((1, 6, 1), np.float32),
    "v": np.arange(1, 7, dtype=np.float32).reshape(1, 6, 1),
}


# ---- by hand ------------------------------------------------------------------------------------


@both
def test_after_by_hand(function: Any) -> None:
    raw, smoothed, indices, kernels, shifts = function(
        **UNIFORM, budget=4, window=2, kernel=3, use_wo=False, use_ema=False
    )
    abar = (1 / 5 + 1 / 6) / 2
    output = abar * (1 + 2 + 3 + 4)  # the window's cells 5 and 6 take no part
    s = abar / (1 - abar) * np.abs(output - np.array([1, 2, 3, 4]))
    np.testing.assert_allclose(raw[0], s, rtol=1e-6)
    # equal logits: both halves look at cells 0 and 1, the drift is 0, and that shifts by 1
    assert kernels.tolist() == [3] and shifts.tolist() == [1]
    np.testing.assert_allclose(smoothed[0], [s[0:3].mean(), s[1:4].mean(), (s[2] + 2 * s[3]) / 3, s[3]], rtol=1e-6)
    assert indices.tolist() == [[2, 3]]


@both
def test_ema_weights_by_hand(function: Any) -> None:
    raw = function(**UNIFORM, budget=4, window=2, method="restkv", pooling="none", use_wo=False, alpha=0.25)[0]
    abar = 0.75 / 5 + 0.25 / 6  # the oldest row has no factor alpha
    np.testing.assert_allclose(raw[0], abar / (1 - abar) * np.abs(10 * abar - np.array([1, 2, 3, 4])), rtol=1e-6)


@both
def test_before_by_hand(function: Any) -> None:
    wo = np.array([[3.0], [4.0]], np.float32)  # ||wo x|| = 5 |x|
    options: dict[str, Any] = {"budget": 4, "window": 2, "pooling": "none", "metric_mode": "before", "use_ema": False}
    v = np.array([1, 2, 3, 4])
    row0 = (1 / 5) / (4 / 5) * np.abs(3.0 - v)  # output 3: mean of 1 .. 5
    row1 = (1 / 6) / (5 / 6) * np.abs(3.5 - v)
    raw = function(**UNIFORM, wo=wo, **options)[0]
    np.testing.assert_allclose(raw[0], 5 * (row0 + row1) / 2, rtol=1e-6)
    raw = function(**UNIFORM, wo=wo, use_norm=True, **options)[0]
    np.testing.assert_allclose(raw[0], (row0 / 3.0 + row1 / 3.5) / 2, rtol=1e-6)


@both
def test_tau_by_hand(function: Any) -> None:
    wo = np.array([[2.0]], np.float32)
    raw = function(**UNIFORM, wo=wo, budget=4, window=2, pooling="none", use_ema=False, tau=0.5)[0]
    abar = (1 / 5 + 1 / 6) / 2
    np.testing.assert_allclose(
        raw[0], abar / (1 - abar) * np.sqrt(2 * np.abs(10 * abar - np.array([1, 2, 3, 4]))), rtol=1e-6
    )


@both
def test_snapkv_sums_rows(function: Any) -> None:
    raw, smoothed, *_ = function(**UNIFORM, method="snapkv", budget=4, window=2, pooling="avgpool", kernel=3)
    s = 1 / 5 + 1 / 6
    np.testing.assert_allclose(raw[0], np.full(4, s), rtol=1e-6)
    np.testing.assert_allclose(smoothed[0], [2 * s / 3, s, s, 2 * s / 3], rtol=1e-6)  # zeros beyond the ends


@both
@pytest.mark.parametrize(
    ("cells", "kernel", "shift"),
    [
        ((5, 5), 3, 1),  # no drift at all
        ((8, 5), 3, 0),  # 3
        ((9, 5), 3, 1),  # 4: one step
        ((14, 5), 5, 2),  # 9
        ((5, 8), 3, 0),  # -3
        ((5, 9), 3, 0),  # -4: exactly one step back does not shift
        ((5, 10), 3, -1),  # -5
        ((5, 13), 5, -1),  # -8
        ((5, 14), 5, -2),  # -9
    ],
)
def test_drift_table(function: Any, cells: tuple[int, int], kernel: int, shift: int) -> None:
    # one-hot keys: row i attends to cells[i] alone
    n = 20
    k = np.eye(n, dtype=np.float32)[None]
    q = 100 * k[:, list(cells)]
    _, _, _, kernels, shifts = function(q, k, k, budget=3, window=2, kernel=3, scale=4, use_wo=False)
    assert (kernels.tolist(), shifts.tolist()) == ([kernel], [shift])


@both
def test_streamingllm_keeps_the_first(function: Any) -> None:
    arrays = random_arrays(0, n=50, window=8)
    raw, smoothed, indices, _, _ = function(**arrays, method="streamingllm", budget=12, window=8, reduce="mean")
    assert raw[0].tolist() == [-j for j in range(42)]
    np.testing.assert_array_equal(raw, smoothed)
    assert indices.tolist() == [[0, 1, 2, 3]] * 2


@both
def test_random_is_a_function_of_head_and_position(function: Any) -> None:
    arrays = random_arrays(1, n=300, window=8)
    raw = function(**arrays, method="random", budget=40, window=8, seed=7, layer=3)[0]
    mask, golden = 2**64 - 1, []
    for position in (0, 291):  # head 1 of the KV heads, query heads 2 and 3
        x = 7 ^ (3 * 0x9E3779B97F4A7C15) ^ (2 * 0xBF58476D1CE4E5B9) ^ ((position + 1) * 0x94D049BB133111EB)
        x &= mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        golden.append(((x ^ (x >> 31)) >> 40) * 2.0**-24)
    assert raw[2, [0, 291]].tolist() == golden
    np.testing.assert_array_equal(raw[2], raw[3])
    assert 0.4 < raw.mean() < 0.6
    pos = np.tile(np.arange(300) + 5, (2, 1))
    moved = function(**arrays, pos=pos, method="random", budget=40, window=8, seed=7, layer=3)[0]
    np.testing.assert_array_equal(moved[:, :-5], raw[:, 5:])


@both
def test_one_saturated_cell(function: Any) -> None:
    # cell 3 holds all the attention; without it the output would be the mean of the others
    n, gap = 40, 60.0
    q = np.ones((1, 4, 1), np.float32)
    k = np.zeros((1, n, 1), np.float32)
    k[0, 3] = gap
    v = np.ones((1, n, 1), np.float32)
    v[0, 3] = 5.0
    for mode in ("after", "before"):
        raw = function(q, k, v, budget=8, window=4, use_wo=False, metric_mode=mode, pooling="none")[0]
        # "after" counts the 35 past cells in the output, "before" all the others
        expected = 5.0 - (35 / 37.38 if mode == "after" else 1.0)
        assert raw[0, 3] == pytest.approx(expected, rel=0.02)
        assert (np.delete(raw[0], 3) < 1e-20).all()


def test_defaults_are_those_of_the_config() -> None:
    config, params = EvictConfig(), ScoreParams()
    for name in ("method", "window", "alpha", "scale", "metric_mode", "use_wo", "tau", "budget", "indicator", "rows"):
        assert getattr(params, name) == getattr(config, name)
    assert (params.pooling, params.kernel) == (config.pooling_used, config.kernel_used)


# ---- refusals -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel": 4}, "kernel must be odd; try 5"),
        ({"window": 15}, "window must be even"),
        ({"budget": 16}, "budget must be a number from 17"),
        ({"method": "full"}, "'full' keeps every cell"),
        ({"method": "h3o"}, "method must be one of"),
        ({"budjet": 3}, "unknown parameter 'budjet'"),
        ({"wo": None}, "wo is needed with use_wo"),
        ({"wo": np.zeros((4, 5), np.float32)}, "wo must be [c, heads * d] = [c, 128]"),
        ({"q_win": np.zeros((4, 8, 32), np.float32)}, "q_win must hold the last 16 queries"),
        ({"q_win": np.zeros((3, 16, 32), np.float32)}, "heads a multiple of kv_heads"),
        ({"q_win": np.full((4, 16, 32), np.nan, np.float32)}, "q_win holds values that are not finite"),
        ({"v": np.zeros((2, 199, 32), np.float32)}, "k and v must have the same shape"),
        ({"pos": np.zeros((2, 200), np.int64)}, "pos must rise"),
        ({"pos": np.arange(200)}, "pos must be whole numbers of shape"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"scale": 0}, "scale must be a number from 1"),
        ({"scale": 2.5}, "scale must be a whole number"),
        ({"use_wo": 1}, "use_wo must be True or False"),
        ({"use_pyramid": True}, "a pyramid needs layer_idx and num_layers"),
        ({"method": "pyramidkv"}, "a pyramid needs layer_idx and num_layers"),
        ({"allocation": "pyramide"}, "allocation must be one of uniform, pyramid"),
        ({"allocation": "ada", "use_pyramid": True}, "use_pyramid and allocation 'ada' exclude each other"),
        ({"allocation": "ada", "floor": 1.5}, "floor must be a number from 0.0 to 1.0"),
        ({"allocation": "ada", "most": 47}, "most must be a number from 48"),
        ({"most": 60}, "most is the limit of a head with allocation 'ada'"),
        ({"allocation": "ada", "n_select": 9}, "n_select and allocation 'ada' exclude each other"),
        ({"mean_rows": True}, "mean_rows works with method 'snapkv' only"),
        ({"window": 200, "budget": 300}, "there must be more cells"),
    ],
)
def test_refusals(function: Any, changes: dict[str, Any], words: str) -> None:
    arguments = {**random_arrays(0), "budget": 64, "window": 16, **changes}
    with pytest.raises(ConfigError, match="^.*" + words.replace("[", r"\[").replace("*", r"\*")):
        function(**arguments)


@both
def test_odd_window_without_drift(function: Any) -> None:
    raw = function(**random_arrays(0, window=15), budget=64, window=15, pooling="maxpool", kernel=5)[0]
    assert raw.shape == (4, 185)


# ---- properties ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 60))
def test_select(data: st.DataObject, n: int) -> None:
    # few distinct values: many ties
    row = np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), np.float32)
    n_keep = data.draw(st.integers(0, n))
    kept = select(row[None], n_keep)[0]
    best_first = sorted(range(n), key=lambda j: (-row[j], j))
    assert kept.tolist() == sorted(best_first[:n_keep])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(3, 40), window=st.integers(1, 3))
def test_compact_loses_and_duplicates_nothing(data: st.DataObject, n: int, window: int) -> None:
    window = min(window, n - 1)
    n_keep = data.draw(st.integers(0, n - window))
    sets = [
        sorted(data.draw(st.lists(st.integers(0, n - window - 1), min_size=n_keep, max_size=n_keep, unique=True)))
        for _ in range(2)
    ]
    pos = torch.arange(n).expand(2, -1) * 3 + torch.tensor([[0], [1]])
    k = pos[:, :, None] * 10 + torch.arange(4)
    new_k, new_v, new_pos = compact(k, -k, pos, torch.tensor(sets, dtype=torch.int32), window)
    for head, kept in enumerate(sets):
        expected = [*kept, *range(n - window, n)]
        assert new_pos[head].tolist() == pos[head, expected].tolist()
        assert new_pos[head].tolist() == sorted(new_pos[head].tolist())
        np.testing.assert_array_equal(new_k[head], k[head, expected])
        np.testing.assert_array_equal(new_v[head], -k[head, expected])


@both
@pytest.mark.parametrize("n", [18, 63, 64, 65, 66])
@pytest.mark.parametrize("reduce", [None, "mean"])
def test_sizes_around_the_budget(function: Any, n: int, reduce: str | None) -> None:
    raw, smoothed, indices, _, _ = function(**random_arrays(n, n=n), budget=64, window=16, reduce=reduce)
    assert raw.shape == smoothed.shape == (4, n - 16)
    assert indices.shape == (4 if reduce is None else 2, min(n, 64) - 16)
    if n <= 64:
        assert (indices == np.arange(n - 16)).all()


def literal_adaptive(s: np.ndarray, kernel: int, shift: int) -> np.ndarray:
    """The paper's formula on a text without gaps: replicated ends."""
    r = kernel // 2
    return np.array(
        [np.mean([s[np.clip(j + shift + u, 0, len(s) - 1)] for u in range(-r, r + 1)]) for j in range(len(s))]
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), radius=st.integers(0, 8), shift=st.integers(-9, 9),
    start=st.integers(0, 1000),
)  # fmt: skip
def test_smoothing_without_gaps(seed: int, n: int, radius: int, shift: int, start: int) -> None:
    s = np.random.default_rng(seed).random(n)
    pos, kernel = start + np.arange(n), 2 * radius + 1
    np.testing.assert_allclose(smooth_adaptive(s, pos, kernel, shift), literal_adaptive(s, kernel, shift), rtol=1e-12)
    around = [s[max(0, j - radius) : j + radius + 1] for j in range(n)]
    np.testing.assert_allclose(smooth_avgpool(s, pos, kernel), [x.sum() / kernel for x in around], rtol=1e-12)
    np.testing.assert_array_equal(smooth_maxpool(s, pos, kernel), [x.max() for x in around])


def test_smoothing_with_gaps_by_hand() -> None:
    s, pos = np.array([1.0, 2.0, 4.0, 100.0, 8.0]), np.array([0, 1, 3, 10, 11])
    # 0: positions -1 (as 0), 0, 1; 1: 0, 1 (2 is gone); 3: alone; 10 and 11: each other, and 12 as 11
    np.testing.assert_allclose(smooth_adaptive(s, pos, 3, 0), [4 / 3, 1.5, 4.0, 54.0, 116 / 3])
    # shifted by 1: position 10 looks at 10, 11 and 12 (as 11)
    np.testing.assert_allclose(smooth_adaptive(s, pos, 3, 1), [1.5, 3.0, 4.0, 116 / 3, 8.0])
    np.testing.assert_allclose(smooth_avgpool(s, pos, 3), [1.5, 1.5, 4.0, 54.0, 54.0])
    np.testing.assert_allclose(smooth_maxpool(s, pos, 3), [2.0, 2.0, 4.0, 100.0, 100.0])


@both
def test_positions_without_gaps_change_nothing(function: Any) -> None:
    arrays = random_arrays(5, n=220)
    plain = function(**arrays, budget=64, window=16, kernel=5, scale=20)
    moved = function(**arrays, budget=64, window=16, kernel=5, scale=20, pos=np.tile(np.arange(220) + 999, (2, 1)))
    for got, want in zip(moved, plain, strict=True):
        np.testing.assert_array_equal(got, want)


@both
def test_short_span_ignores_the_drift(function: Any) -> None:
    pos = np.tile(np.arange(6), (1, 1))
    # without positions the drift of 0 shifts by 1 (see above)
    shifts = function(**UNIFORM, pos=pos, budget=4, window=2, kernel=3, scale=5, use_wo=False)[4]
    assert shifts.tolist() == [0]
    shifts = function(**UNIFORM, pos=pos, budget=4, window=2, kernel=3, scale=4, use_wo=False)[4]
    assert shifts.tolist() == [1]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000), size=st.sampled_from([1e-30, 1.0, 1e3, 1e15]), v_size=st.sampled_from([0.0, 1.0, 1e38]),
    mode=st.sampled_from(["after", "before"]), norm=st.booleans(), pooling=st.sampled_from(["adaptive", "avgpool"]),
)  # fmt: skip
def test_never_nan_or_infinite(seed: int, size: float, v_size: float, mode: str, norm: bool, pooling: str) -> None:
    arrays = random_arrays(seed, n=60, d=8, window=4)
    arrays["q_win"] *= np.float32(size)
    arrays["v"] *= np.float32(v_size / np.abs(arrays["v"]).max())
    options: dict[str, Any] = {"metric_mode": mode, "use_norm": norm, "pooling": pooling, "kernel": 3, "reduce": "mean"}
    for function in (score, score_lean):
        raw, smoothed, indices, _, _ = function(**arrays, budget=20, window=4, scale=10, **options)
        assert np.isfinite(raw).all() and np.isfinite(smoothed).all()
        assert indices.shape == (2, 16) and (np.diff(indices, axis=1) > 0).all()
