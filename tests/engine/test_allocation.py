"""How budgets are shared out over layers and heads: pure functions, by hand and by property."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.errors import ConfigError
from restkv_local.plan.allocation import ada_published, ada_shares, pad_sets, pyramid_budgets, pyramid_published
from score_cases import SCORES, random_arrays, score_function


def test_published_pyramid_by_hand() -> None:
    # 64 // 20 = 3 past cells in the last layer, 125 in the first, (125 - 3) // 11 = 11 fewer per layer
    past = pyramid_published(96, 32, 420, 12, 20, flat=True)
    assert past == [125, 114, 103, 92, 81, 70, 59, 48, 37, 26, 15, 4]
    # 100 past cells: 100 in the first layer, 28 in the last by the formula, 34 after rounding the step
    assert [pyramid_published(96, 32, 132, 12, 20, flat=False)[i] for i in (0, 1, 11)] == [100, 94, 34]


def test_published_regimes() -> None:
    assert set(pyramid_published(96, 32, 95, 12, 20, flat=True)) == {63}
    for n_cells in (96, 127):
        assert set(pyramid_published(96, 32, n_cells, 12, 20, flat=True)) == {64}
        assert len(set(pyramid_published(96, 32, n_cells, 12, 20, flat=False))) > 1 or n_cells == 96
    assert len(set(pyramid_published(96, 32, 128, 12, 20, flat=True))) > 1


def test_pyramid_budgets_by_hand() -> None:
    # 40 past cells on average: 2 in the last layer, 78 in the first, a straight line between them
    assert pyramid_budgets(50, 10, 5, 20) == [88, 69, 50, 31, 12]
    assert pyramid_budgets(50, 10, 4, 20) == [88, 63, 37, 12]
    assert pyramid_budgets(11, 10, 3, 20) == [11, 11, 11]
    assert pyramid_budgets(50, 10, 3, 1) == [50, 50, 50]


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(2, 100), st.integers(1, 50))
def test_pyramid_total_is_exact(mean: int, window: int, n_layer: int, beta: int) -> None:
    budgets = pyramid_budgets(window + mean, window, n_layer, beta)
    assert len(budgets) == n_layer
    assert sum(budgets) == n_layer * (window + mean)
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] == window + max(1, mean // beta)


@pytest.mark.parametrize("arguments", [(50, 10, 1, 20), (50, 10, 4, 0), (10, 10, 4, 20)])
def test_pyramid_refusals(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError):
        pyramid_budgets(*arguments)


def test_ada_by_hand() -> None:
    rows = np.array([[9, 8, 7, 6, 1, 1, 1, 1], [5, 4, 0, 0, 0, 0, 0, 0]], np.float32)
    # the 6 largest of both: 4 and 2; a third of the plain 3 is fixed: 4 * 2/3 + 1 and 2 * 2/3 + 1
    assert ada_published(rows, 3, 1 / 3, normalize=False) == [4, 2]
    assert ada_shares(rows, 3, 1 / 3, normalize=False) == [4, 2]
    # the first head's three best hold 24 of 34, the second's all: 9 8 7 6 become 6.4 5.6 4.9 4.2
    assert ada_published(rows, 3, 0.0) == [4, 2]
    assert ada_shares(rows, 3, 0.0, most=3, normalize=False) == [3, 3]
    assert ada_shares(rows, 3, 1.0) == [3, 3]


def test_published_rounding_loses_the_total() -> None:
    rng = np.random.default_rng(0)
    totals = set()
    for _ in range(20):
        rows = rng.gamma(0.5, size=(7, 40)).astype(np.float32)
        totals.add(sum(ada_published(rows, 11, 0.2)))
        assert sum(ada_shares(rows, 11, 0.2)) == 77
    assert len(totals) > 1


def test_negative_scores_compete_as_they_are() -> None:
    # the sum of the second row is all but nothing: a part of it would be anything
    rows = np.array([[-1, -2, -3, -4], [0.5, -0.25, -0.125, -0.1249]], np.float32)
    assert ada_shares(rows, 2, 0.0) == [0, 4]
    assert ada_shares(rows, 2, 0.0, most=3) == [1, 3]
    assert ada_shares(rows - 9, 2, 0.0) == ada_shares(rows, 2, 0.0, normalize=False)


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[np.ndarray], int, float, int | None]:
    heads = draw(st.integers(1, 6))
    mean = draw(st.integers(1, 30))
    levels = draw(st.integers(1, 50))  # few levels: many ties
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = [rng.integers(0, levels, draw(st.integers(1, 60))).astype(np.float32) for _ in range(heads)]
    most = draw(st.one_of(st.none(), st.integers(mean, 2 * mean)))
    return rows, mean, draw(st.floats(0.0, 1.0)), most


@given(layers())
def test_ada_total_floor_and_limit(case: tuple[list[np.ndarray], int, float, int | None]) -> None:
    rows, mean, floor, most = case
    past = ada_shares(rows, mean, floor, most)
    high = [min(len(row), len(row) if most is None else most) for row in rows]
    assert sum(past) == min(mean * len(rows), sum(high))
    for n, limit in zip(past, high, strict=True):
        assert min(int(mean * floor), limit) <= n <= limit


def test_ada_follows_the_scores() -> None:
    rows = np.ones((3, 100), np.float32)
    rows[1, :60] = 1000.0
    past = ada_shares(rows, 20, 0.2, normalize=False)
    assert past[1] > 45 and past[0] == past[2] and sum(past) == 60


def test_fewer_cells_than_the_budget_all_stay() -> None:
    assert ada_published(np.ones((2, 5), np.float32), 6, 0.2) == [5, 5]
    assert ada_shares(np.ones((2, 5), np.float32), 6, 0.2) == [5, 5]


def test_padding() -> None:
    padded = pad_sets([np.array([1, 5], np.int32), np.array([], np.int32), np.array([0, 2, 3], np.int32)])
    assert padded.tolist() == [[1, 5, -1], [-1, -1, -1], [0, 2, 3]]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("method", ["restkv", "snapkv", "keydiff", "knorm"])
@pytest.mark.parametrize("reduce", [None, "mean", "max"])
def test_any_scorer_with_ada(name: str, method: str, reduce: str | None) -> None:
    arrays = random_arrays(5, n=240)
    common: dict[str, Any] = {"method": method, "budget": 56, "window": 16, "scale": 30, "reduce": reduce}
    sets = score_function(name)(**arrays, **common, allocation="ada", floor=0.25, most=70)[2]
    sizes = (sets >= 0).sum(axis=1)
    assert sizes.sum() == 40 * len(sets) and sizes.max() <= 70 and sizes.min() >= 10
    assert len(set(sizes)) > 1  # else the case tests nothing
    # a head keeps its best cells, whatever their number
    smoothed = score_function(name)(**arrays, **common)[1]
    rows = smoothed if reduce is None else getattr(smoothed.reshape(2, 2, -1), reduce)(axis=1)
    for row, one, size in zip(rows, sets, sizes, strict=True):
        best = np.sort(row)[-size]
        assert row[one[:size]].min() >= best - 1e-6 * abs(best)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("alias", ["pyramidkv", "adakv"])
def test_published_names_pool_as_snapkv_does(name: str, alias: str) -> None:
    arrays = random_arrays(7, n=240)
    common: dict[str, Any] = {"budget": 56, "window": 16, "layer_idx": 1, "num_layers": 4}
    got = score_function(name)(**arrays, **common, method=alias)
    own = score_function(name)(**arrays, **common, method=alias, pooling="avgpool", kernel=5)
    plain = score_function(name)(**arrays, budget=56, window=16, method="snapkv")
    for one, other in zip(got, own, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(got[1], plain[1] / (16 if alias == "adakv" else 1), rtol=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_one_set_per_layer_has_no_heads_to_share(name: str) -> None:
    arrays = random_arrays(7, n=240)
    for allocation in ("ada", "adakv"):
        with pytest.raises(ConfigError, match="keeps one set per layer"):
            score_function(name)(**arrays, method="tova", budget=56, window=16, allocation=allocation)
    # a layer of a pyramid is as good as any budget
    layer: dict[str, Any] = {"allocation": "pyramid", "layer_idx": 0, "num_layers": 4}
    more = score_function(name)(**arrays, method="tova", budget=56, window=16, **layer)[2]
    assert more.shape[1] > 40


@pytest.mark.parametrize("name", SCORES)
def test_a_layer_of_a_plan(name: str) -> None:
    arrays = random_arrays(6, n=240)
    common: dict[str, Any] = {"budget": 56, "window": 16, "scale": 30, "reduce": "mean"}
    for n in (1, 40, 77):
        raw, smoothed, sets, kernels, shifts = score_function(name)(**arrays, **common, n_select=n)
        plain = score_function(name)(**arrays, **common)
        assert sets.shape == (2, n)
        for got, want in zip((raw, smoothed, kernels, shifts), (*plain[:2], *plain[3:]), strict=True):
            np.testing.assert_array_equal(got, want)  # the drift counts the plain budget
