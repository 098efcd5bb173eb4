"""Archive and recall of the reference engine: what must never break."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from recalling import (  # noqa: E402
    BUDGET,
    FAMILIES,
    LAYER,
    RESERVE,
    WINDOW,
    check_rows,
    engine,
    held,
    loader,
    read,
    rows,
    tokens,
)
from restkv_local.config import EvictConfig  # noqa: E402
from restkv_local.errors import ConfigError, EvictionError  # noqa: E402
from restkv_local.reference.model import ReferenceEngine  # noqa: E402
from restkv_local.reference.recall import RecallSettings, recall_score  # noqa: E402
from restkv_local.reference.rounding import CacheType  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loader(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("family", FAMILIES)
def test_within_the_budget_an_archive_changes_no_bit(family: str, model: Any) -> None:
    plain, own = engine(model(family), archive=False), engine(model(family))
    text = tokens(BUDGET + 30)
    for at in range(0, len(text), 47):
        assert np.array_equal(plain.decode(text[at : at + 47]), own.decode(text[at : at + 47], recall=True))
    for each in (plain, own):
        each.decode(tokens(20, seed=4))
    # of the guide nothing is left, with an archive or without one: the budget does not hold the text, the capacity does
    assert not own.recall(20)
    plain.cut(len(text))
    assert (own.n_tokens, own.archived, own.pos_exact) == (len(text), 0, 0)
    assert np.array_equal(plain.decode(tokens(9)), own.decode(tokens(9), recall=True))


@pytest.mark.parametrize("kv", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_that_was_dropped_comes_back_bit_for_bit(family: str, kv: str, model: Any) -> None:
    own = engine(model(family), capacity=None, type_k=kv, type_v=kv)
    own.decode(tokens(200))
    k, v = rows(own)
    own.evict()
    left = held(own)
    for seed in (1, 2):
        own.decode(tokens(12, seed))
        assert own.recall(12) and own.n_tokens == own.pos_exact == own.archived == 200
        assert all(len(set(now) - set(before)) > 5 for now, before in zip(held(own), left, strict=True))
        assert held(own)[0] != held(own)[1]
        check_rows(own, k, v)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_everything_and_recalling_is_choosing_once(family: str, model: Any) -> None:
    """By the same window: what an engine that never evicted would choose among all its rows."""
    own = engine(model(family), capacity=None)
    full = ReferenceEngine(model(family), config=EvictConfig(window=WINDOW))
    for each in (own, full):
        each.decode(tokens(230))
    own.evict()
    random = held(own)
    assert own.recall()
    spec, cache = full.model.spec, full._caches[LAYER]
    chosen = recall_score(
        *cache.last_queries(WINDOW), cache.k, cache.k[:, :0], settings=RecallSettings(), budget=BUDGET, window=WINDOW,
        attn_scale=spec.attn_scale, softcap=spec.attn_softcap, sinks=full.model.layers[LAYER].sinks,
    )[1]  # fmt: skip
    assert held(own) == chosen.tolist() != random
    check_rows(own, cache.k, cache.v)
    before = held(own)
    assert own.recall() and held(own) == before, "nothing was read in between"


def test_a_chunk_attends_to_what_its_own_queries_chose(model: Any) -> None:
    """One layer, so that its rows depend on tokens alone: the cells are cut out of a full cache by hand."""
    one = model("qwen2", n_layer=1)
    text = tokens(5 * RESERVE)
    own, full = engine(one), ReferenceEngine(one)
    full.decode(text)
    k, q = full._caches[0].k, one.layers[0].qkv(one.embed(torch.tensor(text)), torch.arange(len(text)))[0]
    exact = []
    for at in range(0, len(text), 32):
        got = own.decode(text[at : at + 32], recall=True)
        exact.append(own.pos_exact)
        cells, n = own._caches[0].pos, own.pos_exact
        if n:
            chosen = recall_score(
                q[:, at : at + 32], torch.arange(at, at + 32), k[:, :n], k[:, n : at + 32], settings=RecallSettings(),
                budget=BUDGET, window=WINDOW, attn_scale=one.spec.attn_scale, softcap=0.0, sinks=None,
            )[1]  # fmt: skip
            assert torch.equal(cells, torch.cat([chosen, torch.arange(n, at + 32).repeat(2, 1)], dim=1))
        check, gone = ReferenceEngine(one), torch.ones(2, at, dtype=torch.bool)
        if at:
            check.decode(text[:at])
        for head in (0, 1):
            gone[head, cells[head][cells[head] < at]] = False
        check._caches[0].pos = check._caches[0].pos.masked_fill(gone, 10_000)  # a position in the future is masked
        assert np.abs(got - check.decode(text[at : at + 32])).max() < 1e-4
    # evicted whenever the free cells did not hold a chunk, and then everything that was read by then
    assert exact == [0, 0, 0, 0, 128, 128, 192, 192, 256, 256]
    assert own.n_evictions == 3 and own.archived == 256


def test_the_first_eviction_while_reading_keeps_the_first_cells(model: Any) -> None:
    own = engine(model("gemma2"))
    read(own, tokens(128))
    own._make_room(32, True)
    assert held(own) == [list(range(BUDGET))] * 2 and held(own, 0) == [list(range(128))] * 2
    assert (own.pos_exact, own.archived, own.n_evictions) == (128, 128, 1)


@pytest.mark.parametrize(("n_guide", "speak"), [(30, 30), (40, 24)])
def test_the_queries_of_a_guide_longer_than_the_window_speak(n_guide: int, speak: int, model: Any) -> None:
    """As many as the ring holds; in the first layer they depend on tokens alone."""
    one = model("llama")
    settings = RecallSettings(n_rows=100, n_guide=max(speak, 24))
    own = engine(one, capacity=None, recall_settings=settings)
    text, guide = tokens(150), tokens(n_guide, seed=8)
    own.decode(text[:100])
    own.evict()
    own.decode(text[100:])
    own.decode(guide)
    n = len(text)
    q, k, _ = one.layers[0].qkv(one.embed(torch.tensor(text + guide)), torch.arange(n + n_guide))
    k = CacheType("f16", 64, is_key=True).store(k)
    assert own.recall(n_guide) and own.archived == n
    last = slice(n + n_guide - speak, n + n_guide)
    chosen = recall_score(
        q[:, last], torch.arange(n + n_guide)[last], k[:, :n], k[:, n:], settings=settings, budget=BUDGET,
        window=WINDOW, attn_scale=one.spec.attn_scale, softcap=0.0, sinks=None,
    )[1]  # fmt: skip
    assert held(own, 0) == chosen.tolist()
    assert own.n_tokens == own.pos_exact == n


def test_an_eviction_with_a_guide_archives_the_text_alone(model: Any) -> None:
    own, full = engine(model("llama")), ReferenceEngine(model("llama"))
    for each in (own, full):
        each.decode(tokens(100))
    own.decode(tokens(20, seed=2))
    assert own.evict(20) and own.archived == 100
    assert torch.equal(own._archives[0].k, full._caches[0].k) and torch.equal(own._archives[0].v, full._caches[0].v)


# ---- types of the archive -----------------------------------------------------------------------


@pytest.mark.parametrize(("kv", "name"), [("f16", "q8_0"), ("q8_0", "q4_0"), ("q4_0", "q8_0")])
def test_a_smaller_archive_rounds_in_the_basis_of_the_cells(kv: str, name: str, model: Any) -> None:
    own = engine(model("llama"), capacity=None, type_k=kv, type_v=kv, archive_type=name)
    own.decode(tokens(200))
    k, v = rows(own)
    own.evict()
    check_rows(own, k, v)
    assert own.recall()
    error = (own._archives[LAYER].k - k).abs().mean() / k.abs().mean()
    assert (0 < error < 0.01) if name == "q8_0" else (0.02 < error < 0.2)
    for x, cells, is_key in ((k, own._caches[LAYER].k, True), (v, own._caches[LAYER].v, False)):
        cache = CacheType(kv, 64, is_key=is_key)
        once = CacheType(name, 64, is_key=is_key, n_rot=cache.n_rot).store(x)
        back = cache.store(once)
        for head, kept in enumerate(held(own)):
            assert torch.equal(cells[head], back[head, kept])


def test_an_archive_of_the_cells_type_is_as_the_cells(model: Any) -> None:
    auto, named = (engine(model("llama"), type_k="q8_0", type_v="q8_0", archive_type=t) for t in ("auto", "q8_0"))
    for each in (auto, named):
        read(each, tokens(300))
    assert torch.equal(auto._archives[1].k, named._archives[1].k) and held(auto) == held(named)


# ---- refusals -----------------------------------------------------------------------------------


def test_refusals_of_settings(model: Any) -> None:
    one = model("llama")
    for config, words in (
        (EvictConfig(method="h2o"), "queries do not vote"),
        (EvictConfig(allocation="pyramid"), "allocation 'uniform'"),
        (EvictConfig(method="full"), "never evicts"),
        (EvictConfig(), "at least 37: a window of 32, 4 first"),
        (EvictConfig(method="streamingllm", window=2), "at least 37"),
    ):
        with pytest.raises(ConfigError, match=words):
            ReferenceEngine(one, 36, 200, config, archive=True)
    with pytest.raises(ConfigError, match="archive_type must be one of"):
        engine(one, archive_type="f16")
    with pytest.raises(ConfigError, match="q4_0 needs rotated rows"):
        engine(one, archive_type="q4_0")
    with pytest.raises(ConfigError, match="kernel must be odd; try 5"):
        RecallSettings(kernel=4)


def test_refusals_of_calls(model: Any) -> None:
    own = engine(model("llama"), recall_settings=RecallSettings(n_guide=0))  # the window alone is remembered
    without = engine(model("llama"), archive=False)
    for call in (without.recall, lambda: without.decode([5], recall=True)):
        with pytest.raises(ConfigError, match="needs an archive"):
            call()
    with pytest.raises(EvictionError, match="65 tokens is larger than the reserve of 64"):
        own.decode(tokens(RESERVE + 1), recall=True)
    for each in (own, without):
        read(each, tokens(200), recall=False)
        with pytest.raises(ConfigError, match="from 0 to 200"):
            each.cut(201)
    with pytest.raises(ConfigError, match="n_guide must be from 0 to"):
        own.recall(100)
    with pytest.raises(EvictionError, match="have been evicted"):
        without.cut(30)
    own.cut(100)
    with pytest.raises(EvictionError, match="no query is remembered"):
        own.recall()
