"""Cuts of a reference engine with an archive: anywhere, exact, and without reading again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from recalling import BUDGET, RESERVE, WINDOW, check_rows, engine, held, loader, read, rows, tokens  # noqa: E402
from restkv_local.reference.model import ReferenceEngine  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loader(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("at", [32, 64, 96, 128, 224, 256, 288])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
def test_cut_and_ask_is_reading_less_and_asking(family: str, at: int, model: Any) -> None:
    text, question = tokens(320), tokens(20, seed=5)
    own, short = engine(model(family)), engine(model(family))
    read(own, text)
    assert own.pos_exact == 256
    read(short, text[:at])
    own.cut(at)
    assert own.n_tokens == at
    if at <= BUDGET:
        assert own.pos_exact == short.pos_exact == 0 and held(own) == held(short) == [list(range(at))] * 2
    else:
        assert own.pos_exact == min(at, 256), "a cut before the last eviction leaves no tail"
        assert own.archived == own.pos_exact
    if own.pos_exact != short.pos_exact:
        short.evict()
    assert np.array_equal(own.decode(question, recall=True), short.decode(question, recall=True))
    assert held(own) == held(short)
    assert own.recall(20) == short.recall(20) == (at > BUDGET)
    assert held(own) == held(short)
    # and on: the whole reserve is free; then both evict again, and archive what was read in between
    evictions = own.n_evictions
    for seed in range(4):
        assert np.array_equal(*(each.decode(tokens(RESERVE, seed), recall=True) for each in (own, short)))
        assert seed or own.n_evictions == evictions
    assert own.archived == short.archived > at
    for il in own._archives:
        assert torch.equal(own._archives[il].k, short._archives[il].k)


@pytest.mark.parametrize("at", [17, 64, 65, 101, 190])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt-oss"])
def test_cut_between_chunks_of_a_text_that_was_read_exactly(family: str, at: int, model: Any) -> None:
    text, question = tokens(200), tokens(20, seed=5)
    own, short = (engine(model(family), capacity=None, type_k="f32", type_v="f32") for _ in range(2))
    own.decode(text)
    short.decode(text[:at])
    assert own.evict() and short.evict() == (at > BUDGET)
    own.cut(at)
    ours, theirs = own.decode(question, recall=True), short.decode(question, recall=True)
    assert held(own) == held(short)
    # sums over matrices of other sizes, and Gemma reads an activation from a table of float16
    assert np.abs(ours - theirs).max() < 1e-3


@pytest.mark.parametrize("at", [30, 64, 80, 140, 199])
def test_a_cut_keeps_what_was_held_and_fills_up(at: int, model: Any) -> None:
    own = engine(model("llama"), capacity=None)
    own.decode(tokens(200))
    k, v = rows(own)
    own.evict()
    own.decode(tokens(12, seed=1))
    before = [[p for p in cells if p < 200] for cells in held(own)]
    own.cut(at)
    for cells, old in zip(held(own), before, strict=True):
        if at <= BUDGET:
            assert cells == list(range(at))
            continue
        assert len(cells) == BUDGET and {*range(4), *range(at - WINDOW, at)} <= set(cells)
        middle = [p for p in old if 4 <= p < at - WINDOW]
        others = sorted(set(range(4, at - WINDOW)) - set(middle))
        room = BUDGET - 4 - WINDOW
        wanted = middle[-room:] + others[len(others) - max(0, room - len(middle)) :]
        assert cells == sorted([*range(4), *wanted, *range(at - WINDOW, at)])
    check_rows(own, k, v)
    assert own.archived == at


def test_what_is_read_after_a_cut_takes_the_place_of_what_was_cut(model: Any) -> None:
    own, one = engine(model("qwen3")), model("qwen3")
    text = tokens(256)
    read(own, text)
    for at in (0, 32, 90, 150):
        own.cut(at)
        assert (own.n_tokens, own.archived) == (at, at)
        text = text[:at] + tokens(250 - at, seed=at + 10)
        read(own, text[at:])
        # in the first layer rows depend on tokens alone; those of another token are about 1 away
        full = ReferenceEngine(one)
        full.decode(text)
        assert own.archived > 150
        np.testing.assert_allclose(own._archives[0].k, full._caches[0].k[:, : own.archived], atol=0.01)
        np.testing.assert_allclose(own._archives[0].v, full._caches[0].v[:, : own.archived], atol=0.01)
    own.cut(0)
    assert (own.n_tokens, own.archived, own.cells, own.pos_exact) == (0, 0, 0, 0)
    assert np.array_equal(own.decode(text[:100]), engine(one).decode(text[:100]))


def test_a_guide_that_reaches_back_into_the_archive_is_forgotten_there_too(model: Any) -> None:
    own, other = engine(model("llama")), engine(model("llama"))
    read(own, tokens(256))
    own.cut(60)  # all of it is in the cells, and in the archive
    assert not own.recall(20) and own.archived == own.n_tokens == 40
    read(other, tokens(40)[:32])
    other.decode(tokens(40)[32:])
    for each in (own, other):
        read(each, tokens(200, seed=1))
    assert own.archived == other.archived > 100
    # the last of the 40 tokens were read in a chunk of another size
    np.testing.assert_allclose(own._archives[0].k, other._archives[0].k, atol=0.01)
