"""An engine whose answers recall: which tokens do, what they leave, and what happens when one cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import SMALL, TEXT, answer, logits
from restkv_local.config import RECALL_SINKS, EvictConfig
from restkv_local.errors import ArchiveError, Cancelled, ConfigError, LibraryError

try:
    from restkv_local import Engine
    from restkv_local.native.binding import LIBRARY
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

BUDGET, WINDOW = 96, 32
Load = Callable[..., Engine]


@pytest.fixture(scope="module")
def load(model: Path) -> Iterator[Load]:
    """Engines with an archive, one per setting, each with an empty cache."""
    made: dict[Any, Engine] = {}

    def get(**settings: Any) -> Engine:
        key = tuple(sorted(settings.items()))
        if key not in made:
            evict = SMALL.with_(**{"archive": "ram", **settings})
            made[key] = Engine(model, n_threads=1, n_ctx=2048, evict=evict)
        made[key].reset()
        return made[key]

    yield get
    for engine in made.values():
        engine.close()


@pytest.fixture(scope="module")
def tokens(load: Load) -> list[int]:
    found: list[int] = load().tokenize(TEXT.encode())
    return found


def held(engine: Engine) -> list[list[int]]:
    return [engine.kept(layer, head).tolist() for layer in range(2) for head in range(2)]


def chosen(engine: Engine) -> list[list[int]]:
    """Without what was read since the last eviction."""
    return [positions[:BUDGET] for positions in held(engine)]


def forced(engine: Engine, tokens: list[int]) -> np.ndarray:
    """Logits after each token of an answer."""
    rows = []
    for token in tokens:
        engine.eval([token])
        rows.append(logits(engine))
    return np.array(rows)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_every_so_many_tokens_recall(load: Load, tokens: list[int], every: int) -> None:
    engine = load(recall_every=every)
    engine.eval(tokens[:501])
    before, recalled = chosen(engine), []
    for token in tokens[600:620]:
        seen = engine.report().answer_recalled
        engine.eval([token])
        report = engine.report()
        recalled += [engine.n_tokens] * (report.answer_recalled - seen)
        assert (chosen(engine) != before) == (report.answer_recalled > seen)
        before = chosen(engine)
    assert recalled == [n for n in range(502, 522) if n % every == 0], "by position"
    assert 0 < report.answer_recall_seconds < report.recall_seconds
    for positions in held(engine):
        assert positions[:RECALL_SINKS] == [0, 1, 2, 3]
        assert positions[BUDGET - WINDOW :] == list(range(480 - WINDOW, 521))


def test_other_tokens_are_read_as_ever(load: Load, tokens: list[int]) -> None:
    """Until the first one that recalls, and where no answer recalls."""
    rows = []
    for every in (0, 1000):
        engine = load(recall_every=every)
        engine.eval(tokens[:500])
        rows.append(forced(engine, tokens[600:630]))
        assert engine.report().answer_recalled == 0
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("prefill", ["recall", "stream"])
def test_within_the_budget_no_bit_changes(load: Load, tokens: list[int], prefill: str) -> None:
    rows = []
    for settings in ({"archive": "none"}, {"prefill": prefill, "recall_every": 2, "recall_below": 0.9}):
        engine = load(budget=512, **settings)
        engine.eval(tokens[:400])
        rows.append(forced(engine, tokens[400:440]))
        assert engine.report().recalled == engine.report().answer_recalled == 0
    np.testing.assert_array_equal(*rows)


def test_an_answer_finds_what_it_asks_for(load: Load, tokens: list[int]) -> None:
    """One token recalls, and another choice of cells gives other logits; the cells are then those of its own query."""
    plain, own = load(), load(recall_every=1)
    for engine in (plain, own):
        engine.eval(tokens[:500])
    assert held(plain) == held(own)
    first, second = forced(plain, [7]), forced(own, [7])
    assert held(plain) != held(own) and np.abs(first - second).max() > 1e-4
    sets = held(own)
    own.n_tokens -= 1
    own.eval([7])
    assert held(own) == sets
    np.testing.assert_array_equal(logits(own), second[0])


@pytest.mark.parametrize(("every", "below"), [(1, 0.0), (3, 0.0), (0, 0.5), (7, 0.5)])
@pytest.mark.parametrize("prefill", ["recall", "stream"])
def test_logits_of_an_answer_are_those_of_its_tokens_one_by_one(
    load: Load, tokens: list[int], prefill: str, every: int, below: float
) -> None:
    """Over evictions, of tokens that recall and of others."""
    engine = load(prefill=prefill, recall_every=every, recall_below=below)
    engine.eval(tokens[:500])
    n_evictions = engine.report().n_evictions
    said = tokens[:300]
    expected, sets = forced(engine, said), held(engine)
    before = engine.report()
    assert before.n_evictions > n_evictions
    engine.reset()
    engine.eval(tokens[:500])
    assert engine.report().answer_recalled == 0
    found = np.concatenate([engine.read_logits(said[i : i + 71]) for i in range(0, len(said), 71)])
    after = engine.report()
    assert held(engine) == sets
    assert (after.answer_recalled, after.answer_recall_layers) == (before.answer_recalled, before.answer_recall_layers)
    assert below or (after.answer_recalled, after.answer_recall_layers) == (len(said) // every, 2.0)
    np.testing.assert_allclose(found, expected, atol=2e-2 if every == 3 else 0)  # the others come in batches


def test_layers_recall_where_they_ask_for_something_else(load: Load, tokens: list[int]) -> None:
    """The same token again and again asks for the same."""
    engine = load(recall_below=0.6)
    engine.eval(tokens[:500])
    forced(engine, [7] * 10)
    few = engine.report()
    assert 1 <= few.answer_recalled < 5 and 1.0 <= few.answer_recall_layers <= 2.0
    engine.eval(tokens[500:510])
    forced(engine, tokens[610:620])
    many = engine.report()
    assert many.answer_recalled > few.answer_recalled


def test_the_same_prompt_again_is_read_from_its_question_on(load: Load, tokens: list[int]) -> None:
    """The answer has recalled, so the cells are not those of the question any more."""
    engine = load(recall_every=2)
    answer(engine, tokens[:500], 30)
    assert engine.report().answer_recalled == 14 and engine.report().completion_tokens == 30
    again = []
    for _ in range(2):
        again.append(answer(engine, tokens[:500], 30))
        report = engine.report()
        assert (report.reevaluated, report.read_tokens, report.recalled) == (None, WINDOW, 15)
    assert again[0] == again[1]


def test_a_prompt_of_one_token_is_no_answer(load: Load, tokens: list[int]) -> None:
    engine = load(recall_every=1, prefill="stream")
    said = answer(engine, tokens[:500], 4)
    answer(engine, [*tokens[:500], *said], 1)
    report = engine.report()
    assert (report.read_tokens, report.answer_recalled) == (1, 0)


def test_figures_begin_anew_with_each_answer(load: Load, tokens: list[int]) -> None:
    engine = load(recall_every=1)
    answer(engine, tokens[:500], 9)
    assert engine.report().answer_recalled == 8 and engine.report().recalled == 8 + 3
    engine.recall(tokens[:20])
    assert engine.report().answer_recalled == 0
    engine.eval([7])
    assert engine.report().answer_recalled == 1
    engine.eval(tokens[:30])
    assert engine.report().answer_recalled == 0


def test_a_failed_recall_takes_its_token_back(
    load: Load, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(recall_every=1)
    engine.eval(tokens[:500])
    expected = forced(engine, tokens[600:620])
    engine.reset()
    engine.eval(tokens[:500])
    forced(engine, tokens[600:610])
    set_reading = LIBRARY.restkv_set_reading

    def failing(ctx: Any, on: bool, below: float) -> int:
        set_reading(ctx, on, below)
        return 0 if on else 8

    with monkeypatch.context() as patch:
        patch.setattr(LIBRARY, "restkv_set_reading", failing)
        for read in (lambda: engine.eval([tokens[610]]), lambda: engine.read_logits(tokens[610:620])):
            with pytest.raises(ArchiveError):
                read()
            assert engine.n_tokens == engine.report().positions == 510
    np.testing.assert_array_equal(forced(engine, tokens[610:620]), expected[10:])


def test_a_stop_leaves_whole_tokens(load: Load, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(recall_every=2)
    expected = answer(engine, tokens[:500], 20)
    engine.reset()
    said = []
    with pytest.raises(Cancelled):
        for token in engine.generate(tokens[:500], temp=0.0):
            said.append(token)
            if len(said) == 9:
                engine.cancel()
    assert said == expected[:9] and engine.n_tokens == 508
    assert answer(engine, [*tokens[:500], *said], 11) != [], "it goes on"


def test_what_cannot_be_is_refused() -> None:
    for settings in ({"recall_every": 1}, {"recall_below": 0.5}):
        with pytest.raises(ConfigError, match=f"{next(iter(settings))} recalls from an archive: set archive"):
            EvictConfig(**settings)  # type: ignore[arg-type]
    for value in (-1, 1.5, True, 1 << 40):
        with pytest.raises(ConfigError, match="recall_every must be a whole number from 0"):
            EvictConfig(archive="ram", recall_every=value)  # type: ignore[arg-type]
