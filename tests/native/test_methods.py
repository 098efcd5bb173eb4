"""Methods beside ReST-KV: other people's outputs, cases worked out by hand, the ladder alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restkv_local.config import METHODS, EvictConfig
from restkv_local.errors import ConfigError
from restkv_local.plan.ladder import Ladder, plan_ladder
from restkv_local.plan.methods import TRAITS
from restkv_local.reference import score, score_lean
from score_cases import SCORES, assert_same_sets, assert_scores_close, random_arrays, score_function

GOLDEN = Path(__file__).parents[1] / "golden"
OTHER: dict[str, dict[str, Any]] = {
    case["name"]: case for case in json.loads((GOLDEN / "index_other.json").read_text())
}
each_function = pytest.mark.parametrize("function", SCORES)


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / OTHER[name]["file"]) as file:
        return {key: file[key] for key in file.files}


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    result: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return result


def attention(arrays: dict[str, Any], hide: np.ndarray) -> np.ndarray:
    """[H, rows, N] softmax of q k / sqrt(d), -inf where `hide` [rows, N]."""
    q, k = arrays["q_win"].astype(np.float64), arrays["k"].astype(np.float64)
    k = np.repeat(k, len(q) // len(k), axis=0)
    z = np.einsum("hid,hjd->hij", q, k) / np.sqrt(q.shape[2])
    return softmax(np.where(hide, -np.inf, z))


def future(rows: int, n: int) -> np.ndarray:
    """[rows, N] True for the cells after each query, which are those of the last cells."""
    return np.arange(n)[None, :] > np.arange(n - rows, n)[:, None]


# ---- other people's outputs ---------------------------------------------------------------------


@each_function
@pytest.mark.parametrize("reduce", [None, "mean", "max"])
def test_tova_of_kvpress(function: str, reduce: str | None) -> None:
    data = load("press_tova")
    q, k, v = (data[name].astype(np.float32) for name in ("q", "k", "v"))
    raw, smoothed, indices, _, _ = score_function(function)(q, k, v, reduce=reduce, **OTHER["press_tova"]["params"])
    assert raw.shape == smoothed.shape == (8, 399)
    for row in smoothed:
        assert_scores_close(row, data["smoothed"][0, :-1], 2e-5)
    assert len(indices) == (8 if reduce is None else 2)
    for row in indices:  # the newest cell is protected there, and window here
        assert [*row, 399] == data["indices"][0].tolist()


@each_function
@pytest.mark.parametrize("window", [0, 1])
def test_keydiff_of_kvpress(function: str, window: int) -> None:
    data = load("press_keydiff")
    q, k, v = (data[name].astype(np.float32) for name in ("q", "k", "v"))
    parameters = OTHER["press_keydiff"]["params"] | {"window": window, "reduce": "mean"}
    raw, smoothed, indices, _, _ = score_function(function)(q, k, v, **parameters)
    want = np.repeat(data["smoothed"], 2, axis=0)[:, : 240 - window]
    assert_scores_close(raw, want, 2e-5)
    np.testing.assert_array_equal(raw, smoothed)
    if window == 0:
        np.testing.assert_array_equal(indices, data["indices"])


@pytest.mark.parametrize("name", ["la_ppl_256", "la_prefill_once"])
@pytest.mark.parametrize("published", [True, False])
def test_ladder_of_lacache(name: str, published: bool) -> None:
    p, data = OTHER[name]["params"], load(name)
    ladder = plan_ladder(p["layers"], p["cache_size"], 0, p["start_size"], p["span"], p["overlap"])
    kept = np.tile(np.arange(p["prompt"]), (p["layers"], 1))
    cursor, sizes, seen = 0, [], 0
    for step in range(-1, p["steps"]):
        if step >= 0:
            kept = np.pad(kept, ((0, 0), (0, 1)), constant_values=p["prompt"] + step)
        if kept.shape[1] > p["cache_size"]:
            results = [compact(ladder, layer, kept.shape[1], cursor, published) for layer in range(p["layers"])]
            kept = np.stack([row[cells] for row, (cells, _) in zip(kept, results, strict=True)])
            cursor = results[0][1]
        sizes.append(kept.shape[1])
        if f"kept_{step}" in data:
            np.testing.assert_array_equal(kept, data[f"kept_{step}"])
            seen += 1
    assert seen == 4 and sizes == data["sizes"].tolist()


def compact(ladder: Ladder, layer: int, n: int, cursor: int, published: bool) -> tuple[np.ndarray, int]:
    if published:
        return ladder.compact_published(layer, n, cursor, ladder.budget + ladder.drop // 2)
    return ladder.compact(layer, n, cursor)


# ---- by hand ------------------------------------------------------------------------------------


@each_function
def test_methods_by_position(function: str) -> None:
    arrays = random_arrays(0, n=50, window=8)
    for method, kept in (("fifo", range(38, 42)), ("streamingllm", range(4))):
        indices = score_function(function)(**arrays, method=method, budget=12, window=8, reduce="mean")[2]
        assert indices.tolist() == [list(kept)] * 2


@each_function
def test_knorm_keeps_short_keys(function: str) -> None:
    arrays = random_arrays(1, n=90, window=8)
    raw, _, indices, _, _ = score_function(function)(**arrays, method="knorm", budget=20, window=0, reduce="mean")
    lengths = np.linalg.norm(arrays["k"].astype(np.float64), axis=-1)
    assert_scores_close(raw, np.repeat(-lengths, 2, axis=0).astype(np.float32), 1e-6)
    np.testing.assert_array_equal(indices, np.sort(np.argsort(lengths, axis=1)[:, :20], axis=1))


@each_function
@pytest.mark.parametrize("rows", [200, 31, 1])
def test_h2o_is_causal_when_asked(function: str, rows: int) -> None:
    arrays = random_arrays(2, n=200, window=rows)
    raw, smoothed, _, kernels, _ = score_function(function)(
        **arrays, method="h2o", budget=60, window=16, official_mask=False
    )
    a = attention(arrays, future(rows, 200))
    assert_scores_close(raw, a.sum(axis=1)[:, :184].astype(np.float32), 2e-5)
    np.testing.assert_array_equal(raw, smoothed)  # not pooled
    assert kernels.tolist() == [1] * 4


INDICATORS: list[tuple[dict[str, Any], list[float], bool]] = [
    ({"indicator": "attention", "rows": "mean"}, [0.25] * 4, False),
    ({"indicator": "attention", "use_ema": False}, [0.25] * 4, False),
    ({"indicator": "attention", "rows": "last"}, [0, 0, 0, 1], False),
    ({"indicator": "attention", "rows": "ema", "alpha": 0.5}, [0.125, 0.125, 0.25, 0.5], False),
    ({"indicator": "attention", "rows": "inverted-ema", "alpha": 0.5}, [0.5, 0.25, 0.125, 0.125], False),
    ({"indicator": "attention-value-norm", "rows": "sum"}, [1] * 4, True),
    ({"method": "ablation", "indicator": "attn", "ts": "ema", "ss": "none"}, [1] * 4, False),
    ({"method": "ablation", "indicator": "attn-v", "ts": "inv-ema", "ss": "adaptive"}, [1] * 4, True),
]


@each_function
@pytest.mark.parametrize("case", range(len(INDICATORS)))
def test_indicators_by_hand(function: str, case: int) -> None:
    options, weights, with_values = INDICATORS[case]
    arrays = random_arrays(3, n=70, window=4)
    raw, smoothed, *_ = score_function(function)(**arrays, **{"budget": 20, "window": 4, "kernel": 5, **options})
    want = np.einsum("i,hij->hj", np.array(weights), attention(arrays, future(4, 70)))[:, :66]
    if with_values:
        want *= np.repeat(np.linalg.norm(arrays["v"].astype(np.float64), axis=-1), 2, axis=0)[:, :66]
    assert_scores_close(raw, want.astype(np.float32), 2e-5)
    if options.get("method") == "ablation":  # average-pooled whatever `ss` says
        np.testing.assert_allclose(smoothed[:, 10], want[:, 8:13].mean(axis=1), rtol=2e-5)


@each_function
@pytest.mark.parametrize("with_values", [False, True])
def test_the_largest_row_by_hand(function: str, with_values: bool) -> None:
    arrays = random_arrays(3, n=70, window=4)
    largest = attention(arrays, future(4, 70))[:, :, :66].max(axis=1)
    want = np.maximum(largest, largest.mean(axis=1, keepdims=True))
    assert (want > largest).any() and (want == largest).any(), "the floor acts, on some"
    if with_values:
        want *= np.repeat(np.linalg.norm(arrays["v"].astype(np.float64), axis=-1), 2, axis=0)[:, :66]
    indicator = "attention-value-norm" if with_values else "attention"
    raw, smoothed, indices, *_ = score_function(function)(
        **arrays, budget=20, window=4, indicator=indicator, rows="max", pooling="avgpool", kernel=5, reduce="max"
    )
    assert_scores_close(raw, want.astype(np.float32), 2e-5)
    np.testing.assert_allclose(smoothed[:, 10], want[:, 8:13].mean(axis=1), rtol=2e-5)
    best = np.argsort(-smoothed.reshape(2, 2, 66).max(axis=1), axis=1, kind="stable")[:, :16]
    np.testing.assert_array_equal(indices, np.sort(best, axis=1))


def test_the_largest_row_is_of_attention() -> None:
    with pytest.raises(ConfigError, match="set indicator to 'attention-value-norm' or 'attention' too"):
        EvictConfig(rows="max")
    assert EvictConfig(rows="max", indicator="attention").rows_used == "max"


@each_function
def test_rows_of_the_reconstruction(function: str) -> None:
    arrays, run = random_arrays(4, n=80, window=8), score_function(function)
    common: dict[str, Any] = {"budget": 30, "window": 8, "pooling": "none"}
    last = run(**arrays, **common, rows="last")[0]
    assert_scores_close(run(**arrays, **common, alpha=1.0)[0], last, 2e-5)
    ablation = run(**arrays, method="ablation", budget=30, window=8, ts="inv-ema", ss="maxpool")
    ours = run(**arrays, budget=30, window=8, rows="inverted-ema", pooling="maxpool", kernel=5)
    for mine, theirs in zip(ours, ablation, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@each_function
def test_a_method_has_its_own_pooling(function: str) -> None:
    arrays, run = random_arrays(5, n=200, window=16), score_function(function)
    common: dict[str, Any] = {"budget": 60, "window": 16}
    for own, said in (
        ({"method": "snapkv"}, {"method": "snapkv", "pooling": "avgpool", "kernel": 5}),
        (
            {"method": "snapkv", "pooling": "maxpool", "kernel": None},
            {"method": "snapkv", "pooling": "maxpool", "kernel": 5},
        ),
        ({"method": "restkv", "pooling": None}, {"method": "restkv", "pooling": "adaptive", "kernel": 21}),
    ):
        for mine, theirs in zip(run(**arrays, **common, **own), run(**arrays, **common, **said), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_traits_and_the_configuration() -> None:
    assert (*TRAITS, "full") == METHODS
    config = EvictConfig(method="snapkv")
    assert (config.pooling_used, config.kernel_used) == ("avgpool", 5)
    back = config.with_(method="restkv")
    assert (back.pooling_used, back.kernel_used) == ("adaptive", 21), "None stays None"
    assert config.with_(kernel=7).kernel_used == 7
    assert EvictConfig(method="tova").window_cells(100) == 1
    assert (
        EvictConfig(method="h2o").ring_rows(100, 400) == 300 and EvictConfig(method="h2o").ring_rows(9999, 10000) == 32
    )
    assert EvictConfig(method="knorm").ring_rows(100, 400) == 0
    assert not EvictConfig(indicator="attention").reads_wo
    with pytest.raises(ConfigError, match="reduce must be 'mean'"):
        EvictConfig(method="h2o", reduce="max")


@pytest.mark.parametrize("function", [score, score_lean], ids=["torch", "lean"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "lacache"}, "lacache' needs num_layers and layer"),
        ({"method": "lacache", "num_layers": 1}, "span below that"),
        ({"method": "lacache", "num_layers": 8, "layer": 8}, "layer must be a number from 0 to 7"),
        ({"method": "lacache", "num_layers": 40, "start_size": 90}, "budget of at least"),
        ({"method": ["tova"]}, "method must be one of restkv"),
        ({"method": "ablation", "indicator": "values"}, "indicator must be one of attn"),
        ({"method": "ablation", "ts": "median"}, "ts must be one of ema"),
        ({"rows": "sum"}, "rows .sum. is no average"),
        ({"indicator": "gradient"}, "indicator must be one of reconstruction"),
        ({"method": "h2o", "q_win": np.zeros((4, 201, 32), np.float32)}, "from 1 to 200 queries"),
        ({"method": "tova", "q_win": np.zeros((4, 0, 32), np.float32)}, "from 1 to 200 queries"),
    ],
)
def test_refusals(function: Any, changes: dict[str, Any], words: str) -> None:
    arguments = {**random_arrays(0), "budget": 64, "window": 16, **changes}
    with pytest.raises(ConfigError, match=words):
        function(**arguments)


# ---- the ladder ---------------------------------------------------------------------------------

LADDERS = st.tuples(st.integers(2, 40), st.integers(1, 39), st.integers(0, 38), st.integers(0, 12), st.integers(0, 40))


def some_ladder(shape: tuple[int, int, int, int, int], spare: int) -> Ladder | None:
    layers, span, overlap, start, window = shape
    try:
        return plan_ladder(layers, start + max(layers, window) + 2 * layers + spare, window, start, span, overlap)
    except ConfigError:
        return None


@settings(max_examples=200, deadline=None)
@given(shape=LADDERS, spare=st.integers(0, 200), extra=st.integers(1, 600), place=st.floats(0, 1))
def test_ladder_keeps_exactly_the_budget(
    shape: tuple[int, int, int, int, int], spare: int, extra: int, place: float
) -> None:
    ladder = some_ladder(shape, spare)
    if ladder is None:
        return
    n, cursor = ladder.budget + extra, int(place * ladder.budget)
    ends = set()
    for layer in range(min(ladder.n_layers, ladder.rung + 1)):
        cells, end = ladder.compact(layer, n, cursor)
        assert len(cells) == ladder.budget and (np.diff(cells) > 0).all()
        assert cells[: ladder.start].tolist() == list(range(ladder.start))
        assert cells[-ladder.tail :].tolist() == list(range(n - ladder.tail, n))
        ends.add(end)
    assert len(ends) == 1 and ladder.start <= end <= ladder.budget
    assert ladder.compact(0, ladder.budget, cursor)[0].tolist() == list(range(ladder.budget))


@settings(max_examples=100, deadline=None)
@given(shape=LADDERS, spare=st.integers(0, 100), extra=st.integers(1, 300), place=st.floats(0, 1))
def test_native_ladder_is_the_same(shape: tuple[int, int, int, int, int], spare: int, extra: int, place: float) -> None:
    ladder = some_ladder(shape, spare)
    run = score_function("native")
    layers, span, overlap, start, window = shape
    if ladder is None:
        return
    n, cursor = ladder.budget + extra, int(place * ladder.budget)
    zeros = np.zeros((1, n, 1), np.float32)
    for layer in (0, 1, layers - 1):
        kept, _ = ladder.compact(layer, n, cursor)
        raw, _, indices, _, _ = run(
            zeros[:, :1], zeros, zeros, method="lacache", budget=ladder.budget, window=window, start_size=start,
            span=span, overlap=overlap, num_layers=layers, layer=layer, cursor=cursor,
        )  # fmt: skip
        past = kept[kept < n - window]
        assert np.flatnonzero(raw[0]).tolist() == indices[0].tolist() == past.tolist()


def test_ladder_by_hand() -> None:
    # 9 layers, span 4, overlap 2: rungs of 4 cells of which 2 stay
    ladder = plan_ladder(9, 20, 0, 2, 4, 2)
    assert (ladder.keep, ladder.drop, ladder.tail) == (2, 2, 9)
    for n, drops in ((24, [[4, 5, 8, 9], [2, 5, 6, 9], [2, 3, 6, 7]]), (23, [[4, 5, 8], [2, 5, 6], [2, 3, 8]])):
        for layer, gone in enumerate(drops):
            for layer_alike in (layer, layer + 6):
                assert set(range(n)) - set(ladder.compact(layer_alike, n, 0)[0].tolist()) == set(gone)
    # whole rungs only, as published
    assert len(ladder.compact_published(1, 23, 0, 20)[0]) == 19
    # two layers: even cells here, odd cells there
    pair = plan_ladder(2, 12, 0, 2)
    assert pair.compact(0, 16, 0)[0].tolist() == [0, 1, 2, 4, 6, 8, 10, 11, 12, 13, 14, 15]
    assert pair.compact(1, 16, 0)[0].tolist() == [0, 1, 3, 5, 7, 9, 10, 11, 12, 13, 14, 15]
    assert pair.compact(0, 16, 0)[1] == 6
    # room for one rung more, then over again from the sinks
    assert pair.compact(0, 14, 9)[0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 11, 12, 13]
    assert pair.compact(0, 14, 9)[1] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((30, 100, 32, 4, 30, 0), "span below that"),
        ((30, 100, 32, 4, 10, 10), "overlap below the span"),
        ((30, 37, 32, 4, 15, 0), "budget of at least 38"),
        ((4, 100, 32, 4, 3, 2), "drops nothing"),
    ],
)
def test_ladders_that_do_not_work(arguments: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_ladder(*arguments)


def test_one_set_per_layer() -> None:
    arrays = random_arrays(6, heads=6, kv_heads=3, n=300, d=32, window=1)
    for name in SCORES:
        raw, smoothed, indices, _, _ = score_function(name)(**arrays, method="tova", budget=50, window=1, reduce="mean")
        want = attention(arrays, future(1, 300))[:, 0, :299]
        assert_scores_close(raw, want.astype(np.float32), 2e-5)
        assert_same_sets(indices, np.tile(indices[:1], (3, 1)), smoothed[:3])
        assert set(indices[0]) == set(np.argsort(-want.mean(axis=0))[:49])
