"""An engine with an archive: reading with recall, cuts anywhere, and recall for a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import SMALL, TEXT, answer, logits
from models import write_random
from restkv_local.config import RECALL_SINKS, EvictConfig
from restkv_local.errors import ConfigError, LibraryError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)


BUDGET, RESERVE, WINDOW = 96, 160, 32
RECALLING = SMALL.with_(archive="ram")
QUESTION = "Who writes the weather into the blue book?"


def made_of(path: Path, **options: Any) -> Engine:
    return Engine(path, **{"n_threads": 1, "n_ctx": 2048, "evict": RECALLING, **options})


@pytest.fixture(scope="module")
def tokens(archiving: Engine) -> list[int]:
    found: list[int] = archiving.tokenize(TEXT.encode())
    return found


@pytest.fixture(scope="module")
def question(archiving: Engine) -> list[int]:
    return list(archiving.tokenize(QUESTION.encode(), add_bos=False))


def held(engine: Engine) -> list[list[int]]:
    """Positions of every layer and head."""
    heads = engine.plan.shares.total // engine.plan.budget // engine.plan.n_layer
    return [engine.kept(layer, head).tolist() for layer in range(engine.plan.n_layer) for head in range(heads)]


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kv_type"), [("smollm2", "f16"), ("model", "f16"), ("model", ("q8_0", "q4_0"))])
def test_budget_above_the_text_is_bit_identical_to_stream(
    request: pytest.FixtureRequest, name: str, kv_type: Any, tokens: list[int]
) -> None:
    rows, answers = [], []
    path = request.getfixturevalue(name)
    for evict in (EvictConfig(budget=512), EvictConfig(budget=512, archive="ram")):
        made = made_of(path, n_ctx=4096, evict=evict, kv_type=kv_type)
        answers.append(answer(made, tokens[:500], 8))
        rows.append(logits(made))
        report = made.report()
        assert report.n_evictions == report.recalled == 0 and report.prefill_used == "none"
        made.close()
    np.testing.assert_array_equal(rows[1], rows[0])
    assert answers[1] == answers[0]


def test_reading_with_recall(recalling: Engine, tokens: list[int]) -> None:
    before, plan = recalling.report().n_evictions, recalling.plan
    assert (plan.prefill, recalling._chunk) == ("recall", RESERVE)
    seen: list[int] = []
    recalling.on_progress = lambda done, total: seen.append(done)
    recalling.eval(tokens[:600])
    assert seen == [0, 160, 320, 480, 600], "one ubatch or the reserve, whatever is free"
    report = recalling.report()
    assert report.prefill == report.prefill_used == "recall"
    assert report.recalled == report.n_evictions - before == 3
    assert report.recalled_cells == 3 * BUDGET and 0 < report.copied_cells < report.recalled_cells
    assert 0 < report.recall_seconds < report.prefill_seconds
    assert report.cells == BUDGET + 600 - 480
    archive = report.archive
    assert archive is not None and plan.archive is not None
    assert (archive.place, archive.types, archive.rows, archive.path) == ("ram", ("f16", "f16"), 480, None)
    assert archive.bytes == plan.archive.bytes == plan.context * plan.bytes_per_cell
    assert archive.written_bytes >= 480 * plan.bytes_per_cell and archive.read_bytes > 0
    assert report.ring_bytes == plan.ring_bytes
    for positions in held(recalling):
        assert positions[:RECALL_SINKS] == [0, 1, 2, 3]
        assert positions[BUDGET - WINDOW :] == list(range(480 - WINDOW, 600))


def test_reading_in_turns_keeps_what_was_read(recalling: Engine, tokens: list[int], question: list[int]) -> None:
    text = tokens[:400]
    said = answer(recalling, text, 5)
    text = [*text, *said]
    for n in (90, 1, 200):
        text = [*text, *(question * 20)[:n]]
        held_before = recalling.n_tokens
        said = answer(recalling, text, 4)
        report = recalling.report()
        assert (report.reused_tokens, report.reevaluated) == (held_before, None)
        assert report.recalled == (2 if n > RESERVE else 1), "a prompt of one token too"
        text = [*text, *said]


def test_batches_change_nothing(model: Path, recalling: Engine, tokens: list[int]) -> None:
    recalling.eval(tokens[:600])
    made = made_of(model, n_batch=2048, n_ubatch=RESERVE)
    assert made._chunk == RESERVE
    made.eval(tokens[:600])
    np.testing.assert_array_equal(logits(made), logits(recalling))
    made.close()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "gpt-oss", "phi3"])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_families(tmp_path: Path, family: str, kv_type: str) -> None:
    """Every kind of attention: plain, with norms, soft caps, sliding windows, sinks."""
    path = write_random(tmp_path / "model.gguf", family, n_swa=64)
    words = [int(token) for token in np.random.default_rng(1).integers(3, 259, 500)]
    for archive_type in ("auto", "q4_0") if kv_type == "q8_0" else ("auto", "q8_0"):
        evict = EvictConfig(budget=96, reserve=96, archive="ram", archive_type=archive_type)  # type: ignore[arg-type]
        made = made_of(path, n_ctx=1024, evict=evict, kv_type=kv_type)
        made.eval(words)
        report = made.report()
        assert report.archive is not None and made.plan.archive is not None
        assert report.archive.bytes == made.plan.archive.bytes
        assert set(report.archive.types) == {kv_type if archive_type == "auto" else archive_type}
        assert report.recalled == 4 and report.archive.rows == 480, "the first two chunks fit"
        answered = answer(made, [*words, *words[:40]], 120)
        assert len(answered) == 120 and np.isfinite(logits(made)).all()
        made.close()


# ---- cuts ----------------------------------------------------------------------------------------


def test_the_same_on_the_embedded_model(smollm2: Path) -> None:
    """A text in chunks, a question, a cut at a chunk's end, the question again."""
    made = made_of(smollm2)
    text, asked = made.tokenize(TEXT.encode())[:400], made.tokenize(QUESTION.encode(), add_bos=False)
    made.eval(text[:320])
    made.eval(asked)
    expected, sets = logits(made), held(made)
    assert 0 < made.report().copied_cells < BUDGET
    made.eval(text[320:])
    made.n_tokens = 320
    made.eval(asked)
    assert held(made) == sets and made.report().reevaluated is None
    np.testing.assert_array_equal(logits(made), expected)
    assert 0 < made.recall(QUESTION).moved < BUDGET
    made.close()


@pytest.mark.parametrize("cut", [BUDGET, 320, 480])
def test_cut_and_on_is_as_if_the_rest_had_never_been_read(
    recalling: Engine, tokens: list[int], question: list[int], cut: int
) -> None:
    """At the end of a chunk, or before any recalled: elsewhere the rows before the cut are those of a longer chunk."""
    recalling.eval(tokens[:cut])
    recalling.eval(question)
    expected, sets = logits(recalling), held(recalling)
    recalling.reset()
    recalling.eval(tokens[:600])
    recalling.n_tokens = cut
    recalling.eval(question)
    assert recalling.report().reevaluated is None and recalling.n_tokens == cut + len(question)
    assert held(recalling) == sets
    np.testing.assert_array_equal(logits(recalling), expected)


@pytest.mark.parametrize("cut", [1, 50, 150, 333, 470, 599])
def test_a_prompt_may_leave_the_text_anywhere(
    recalling: Engine, tokens: list[int], question: list[int], cut: int
) -> None:
    notices: list[str] = []
    recalling.eval(tokens[:600])
    recalling.on_notice = notices.append
    question = [5, *question]  # no token of the text
    answer(recalling, [*tokens[:cut], *question], 3)
    report = recalling.report()
    assert (report.reused_tokens, report.reevaluated, notices) == (cut, None, [])
    assert report.read_tokens == len(question)
    for positions in held(recalling):
        assert positions[-len(question) - 2 :] == list(range(cut, cut + len(question) + 2))
        assert (np.diff(positions) > 0).all()


def test_the_same_prompt_again_gives_the_same_answer(recalling: Engine, tokens: list[int], question: list[int]) -> None:
    prompt = [*tokens[:500], *question]
    first = answer(recalling, prompt, 20)
    again = answer(recalling, prompt, 20)
    report = recalling.report()
    assert again == first
    assert (report.reused_tokens, report.recalled) == (len(prompt) - 1, 0), "the cells are still those of the question"


def test_the_same_prompt_after_a_long_answer_recalls_by_its_question(recalling: Engine, tokens: list[int]) -> None:
    recalling.guide = QUESTION
    prompt = [*tokens[:500], *recalling.tokenize(QUESTION.encode(), add_bos=False)]
    n_guide = len(recalling._guide_of(prompt))
    before = recalling.report().n_evictions
    answer(recalling, prompt, 300)
    assert recalling.report().n_evictions > before + 3, "the answer evicts"
    answer(recalling, prompt, 20)
    report = recalling.report()
    assert (report.reused_tokens, report.read_tokens) == (len(prompt) - n_guide, n_guide)
    assert report.recalled == 1 and report.reevaluated is None


# ---- a question ----------------------------------------------------------------------------------


def test_recall_for_a_question(recalling: Engine, tokens: list[int], question: list[int]) -> None:
    recalling.eval(tokens[:600])
    before = held(recalling)
    found = recalling.recall(QUESTION)
    assert (recalling.n_tokens, recalling.cells, recalling.report().positions) == (600, BUDGET, 600)
    assert found.cells == BUDGET and 0 < found.moved < BUDGET
    assert found.live_share == pytest.approx(1 - found.moved / BUDGET, abs=0.01)
    assert found.seconds > 0 and found.bytes >= 600 * recalling.plan.bytes_per_cell / 2, "all keys are scored"
    sets = held(recalling)
    assert sets != [positions[: BUDGET - WINDOW] + positions[-WINDOW:] for positions in before]
    for positions in sets:
        assert positions[:RECALL_SINKS] == [0, 1, 2, 3] and positions[-WINDOW:] == list(range(568, 600))
    # tokens are the same question, and what is in the cells already is not copied
    again = recalling.recall(question)
    assert held(recalling) == sets or again.moved > 0
    recalling.eval(question)
    assert recalling.n_tokens == 600 + len(question)


def test_recall_by_the_end_of_the_text(recalling: Engine, tokens: list[int]) -> None:
    recalling.eval(tokens[:600])
    expected = logits(recalling)
    found = recalling.recall()
    assert found.cells == BUDGET == recalling.cells and recalling.n_tokens == 600
    np.testing.assert_array_equal(logits(recalling), expected, "nothing was read")


def test_recall_where_nothing_was_evicted(recalling: Engine, tokens: list[int]) -> None:
    recalling.eval(tokens[:150])
    for asked in (QUESTION, None):
        found = recalling.recall(asked)
        assert (found.cells, found.moved, found.live_share) == (0, 0, 1.0) and recalling.cells == 150


def test_a_long_question_is_cut_to_its_end(recalling: Engine, tokens: list[int]) -> None:
    recalling.eval(tokens[:600])
    assert recalling.recall(QUESTION * 60).cells == BUDGET and recalling.n_tokens == 600


def test_questions_that_cannot_be(recalling: Engine, spm: Engine) -> None:
    with pytest.raises(ConfigError, match="the question is empty"):
        recalling.recall("")
    with pytest.raises(ConfigError, match="no archive to recall from"):
        spm.recall(QUESTION)


def test_recall_with_stream(model: Path, tokens: list[int]) -> None:
    """The archive serves questions only: the text is read as without one."""
    made, plain = made_of(model, evict=RECALLING.with_(prefill="stream")), made_of(model, evict=SMALL)
    for engine in (made, plain):
        engine.eval(tokens[:600])
    np.testing.assert_array_equal(logits(made), logits(plain))
    assert held(made) == held(plain) and made.report().recalled == 0
    assert made.recall(QUESTION).moved > 0
    made.close()
    plain.close()
