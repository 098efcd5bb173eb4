"""Follow-up turns of a guided prefill: where an answer has filled the cells, the new question still decides."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from models import write_random
from restkv_local.config import EvictConfig
from restkv_local.errors import LibraryError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

BUDGET, RESERVE, WINDOW, GUIDE = 256, 1024, 32, 128
CAPACITY = BUDGET + RESERVE
ANSWER = 12
LAYER = 1  # of two; the first of Gemma 3 has a sliding window and does not evict
# one token per byte: longer than a guide may be
QUESTION = "And then tell me who keeps the weather, in which book, with which pen, and since when; " * 3


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path: Path = tmp_path_factory.mktemp("guided") / f"{request.param}.gguf"
    write_random(path, request.param, n_swa=64)
    evict = EvictConfig(budget=BUDGET, reserve=RESERVE, prefill="guided")
    made = Engine(path, n_ctx=4096, evict=evict, n_threads=1)
    assert made.plan.guide == GUIDE and made.plan.window == WINDOW
    yield made
    made.close()


def words(n: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 259, n)]


def answered(engine: Engine, free: int) -> list[int]:
    """A first turn without an eviction, after whose answer so many cells are free; the text of prompt and answer."""
    engine.reset()
    engine.guide = None
    prompt = words(CAPACITY - free - ANSWER + 1, 1)  # the last token of an answer is not read
    said = list(islice(engine.generate(prompt, temp=0.0), ANSWER))
    assert engine.plan.capacity - engine.cells == free and engine.report().prefill_evictions == 0
    return prompt + said


def kept(engine: Engine) -> list[set[int]]:
    return [set(engine.kept(LAYER, head).tolist()) for head in range(2)]


@pytest.mark.parametrize("free", [200, 128, 127, 100, 33, 32, 31, 10, 1, 0])
def test_the_new_question_decides_however_few_cells_are_free(engine: Engine, free: int) -> None:
    text = answered(engine, free)
    before, n_evictions = engine.n_tokens, engine.report().n_evictions
    engine.guide = QUESTION
    follow_up = text + words(1500, 2) + engine.tokenize(QUESTION.encode(), add_bos=False)
    list(islice(engine.generate(follow_up, temp=0.0), 1))
    report = engine.report()
    assert report.reused_tokens == before and report.reevaluated is None
    assert report.positions == engine.n_tokens == len(follow_up)
    assert report.prefill_evictions == report.guided_evictions == report.n_evictions - n_evictions == 2
    assert report.prefill_used == "guided"
    first, second = report.evictions[-2:]
    assert first.guide == min(GUIDE, max(free, WINDOW)) and second.guide == GUIDE
    assert first.position == before - max(0, WINDOW - free) if free < GUIDE else first.position == before + free - GUIDE
    assert first.cells_after == second.cells_after == BUDGET
    last = engine.kept(LAYER, 0)
    assert len(last) == engine.cells and (np.diff(last) > 0).all() and last[-1] == len(follow_up) - 1


def test_text_that_made_way_is_read_again(engine: Engine) -> None:
    """As if the answer had ended earlier and its last tokens had come with the follow-up."""
    found = []
    for free, cut in ((10, 0), (10, WINDOW - 10)):
        text = answered(engine, free)
        engine.n_tokens -= cut  # by hand, what the engine does by itself
        engine.guide = QUESTION
        follow_up = text + words(400, 2)
        list(islice(engine.generate(follow_up, temp=0.0), 1))
        assert engine.report().evictions[-1].position == len(text) - 1 - (WINDOW - 10)
        assert engine.report().evictions[-1].guide == WINDOW
        found.append((kept(engine), np.array(engine.scores[-1, :])))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][1], found[1][1], atol=0.05)


def test_another_question_keeps_other_cells(engine: Engine) -> None:
    found = []
    for question in (QUESTION, "Whose ships bring salt, wool, timber and iron, where from, and what for?" * 3):
        text = answered(engine, 10)
        engine.guide = question
        list(islice(engine.generate(text + words(60, 2), temp=0.0), 1))
        assert engine.report().guided_evictions == 1
        found.append(kept(engine))
    assert found[0] != found[1], "the answer's queries are the same"


def test_a_short_question_needs_cells_for_itself_only(engine: Engine) -> None:
    answered(engine, 3)
    engine.guide = "Who?"
    n = len(engine.tokenize(b"Who?", add_bos=False))
    assert n < WINDOW
    engine.eval(words(500, 2))
    assert [eviction.guide for eviction in engine.report().evictions[-1:]] == [n]
    assert engine.report().evictions[-1].position == CAPACITY - n
    assert engine.report().prefill_evictions == engine.report().guided_evictions == 1


def test_a_stop_while_the_text_makes_way_leaves_what_was_read(engine: Engine) -> None:
    text = answered(engine, 10)
    engine.guide = QUESTION
    follow_up = text + words(300, 2)

    def fail(eviction: object) -> None:
        raise KeyError("from the host")

    engine.on_evict = fail
    with pytest.raises(KeyError):
        list(islice(engine.generate(follow_up, temp=0.0), 1))
    engine.on_evict = None
    held = engine.n_tokens
    assert held == engine.report().positions == len(text) - 1 - (WINDOW - 10)
    list(islice(engine.generate(follow_up, temp=0.0), 1))
    assert engine.report().reused_tokens == held and engine.n_tokens == len(follow_up)
