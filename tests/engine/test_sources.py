"""Where an answer came from: passages of the prompt, as characters, tokens and text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import answer, load
from restkv_local import Engine, EvictConfig
from restkv_local.config import RECALL_SINKS, SOURCE_CHARS
from restkv_local.engine.report import NOT_ASKED
from restkv_local.engine.sources import passages, sentence, text_of
from restkv_local.errors import ConfigError
from restkv_local.eval.turns.document import Document, make
from restkv_local.models.files import embedded_path

CELLS = EvictConfig(budget=96, reserve=96, window=16, archive="ram")


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Iterator[Engine]:
    made = Engine(embedded_path(), n_ctx=1024, evict=CELLS, n_threads=2, seed=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def document(smol: Engine) -> Document:
    return make("facts", lambda text: len(smol.tokenize(text.encode(), add_bos=False)), 400, 2, 0, 0)


def ask(engine: Engine, text: str, question: str, answer: str) -> None:
    """The grammar has one answer: whether this model finds it by itself is not asked here."""
    from llama_cpp import LlamaGrammar

    engine.guide = question
    messages: list[Any] = [{"role": "user", "content": f"{text}{question}"}]
    given: Any = engine.create_chat_completion(messages, grammar=LlamaGrammar.from_string(f'root ::= "{answer}"'))
    assert given["choices"][0]["message"]["content"] == answer


def test_the_facts_that_are_asked_for_are_found(smol: Engine, document: Document) -> None:
    for question in document.questions:
        said = question.stem + question.answer
        ask(smol, document.text, question.text, said)
        assert smol.report().recalled_cells > 0
        assert (smol.report().sources, smol.report().sources_reason) == ((), NOT_ASKED)
        found, report = smol.sources(), smol.report()
        assert question.targets[0] in found[0].text and 0.2 < found[0].weight <= 1.0
        assert [one.weight for one in found] == sorted((one.weight for one in found), reverse=True)
        assert (report.sources, report.sources_reason) == (found, None)
        assert report.sources_tokens == report.completion_tokens == len(smol.tokenize(said.encode(), False)) + 1

        prompt = smol.input_ids[: report.prompt_tokens].tolist()
        for one in found:
            assert smol.prompt_text(prompt)[one.start : one.end] == one.text
            assert one.text in smol.prompt_text(prompt[one.positions[0] : one.positions[1]])
            assert question.text not in one.text

        # it is the weights that tell
        assert smol._answer is not None and smol._answer.weights is not None
        text, ends = text_of(prompt, lambda token: smol.detokenize([token]))
        weights = smol._answer.weights[: len(prompt) - 40]
        assert question.targets[0] in passages(weights, text, ends, 1)[0].text
        shuffled = np.random.default_rng(0).permutation(weights)
        assert question.targets[0] not in passages(shuffled, text, ends, 1)[0].text
        assert passages(np.zeros_like(weights), text, ends, 5) == ()


def test_no_answer_has_no_sources(smol: Engine, document: Document) -> None:
    ask(smol, "", "Hello", "Hi")
    for leave in (smol.reset, lambda: smol.eval(smol.tokenize(b"Another text"))):
        leave()
        with pytest.raises(ConfigError, match="there is no answer"):
            smol.sources()
        assert "there is no answer" in str(smol.report().sources_reason)
    with pytest.raises(ConfigError, match="n must be"):
        smol.sources(0)


def test_all_tokens_of_a_long_answer_tell_where_that_is_wanted(model: Path) -> None:
    """The ring holds the queries of 8 positions."""
    cells = EvictConfig(budget=64, reserve=64, window=8)
    prompt = [int(token) for token in np.random.default_rng(1).integers(10, 300, 100)]
    found = []
    for wanted in (False, True):
        engine = load(model, evict=cells, sources=wanted)
        said = answer(engine, prompt, 30)
        found.append(engine.report() if wanted else None)
        engine.sources()
        report = engine.report()
        assert report.completion_tokens == 30 and len(said) == 30
        assert report.sources_tokens == (30 if wanted else 8)
        engine.close()
    # with sources=True the report has them by itself
    assert found[1] is not None and found[1].sources_tokens == 30 and found[1].sources


def test_the_question_is_no_source(bpe: Engine) -> None:
    """The last message of a chat, unless it is most of the prompt: then it holds the text too."""
    long, short = "The harbour lies in the south and ships bring salt. " * 6, "Where is the harbour?"
    for messages, left_out in (
        ([long, "I see.", short], True),
        ([f"{long}{short}"], False),
    ):
        roles = ["user", "assistant", "user"]
        bpe.create_chat_completion(
            [{"role": role, "content": text} for role, text in zip(roles, messages, strict=False)],
            max_tokens=4, temperature=0.0,
        )  # fmt: skip
        given = bpe._answer
        assert given is not None and given.question == messages[-1]
        prompt = bpe.input_ids[: given.start].tolist()
        n = bpe._question_at(prompt, given.question)
        assert (n < len(prompt)) == left_out
        assert bpe.prompt_text(prompt[n:]).startswith(short) or not left_out


def test_settings_that_keep_no_queries_are_refused(model: Path) -> None:
    for evict, kept in (
        (EvictConfig(method="full"), False),
        (EvictConfig(budget=64, reserve=64, method="random"), False),
        (EvictConfig(budget=64, reserve=64, method="random", archive="ram"), True),
    ):
        if not kept:
            with pytest.raises(ConfigError, match="keeps no queries"):
                load(model, evict=evict, sources=True)
        engine = load(model, evict=evict, sources=kept)
        answer(engine, list(range(20, 90)), 4)
        assert (engine.report().sources_tokens > 0) == kept
        if not kept:
            with pytest.raises(ConfigError, match="keeps no queries"):
                engine.sources()
            assert "keeps no queries" in str(engine.report().sources_reason)
        engine.close()


# ---- text -----------------------------------------------------------------------------------------


def test_characters_that_tokens_share() -> None:
    pieces = [b"", b"a\xe2", b"\x82", b"\xacb", b"\xff", "é".encode(), b"\xf0\x9f"]
    text, ends = text_of(range(len(pieces)), lambda token: pieces[token])
    assert text == "a\u20acb\u00e9"
    assert ends.tolist() == [0, 1, 1, 3, 3, 4, 4]


def test_sentences() -> None:
    text = 'One (two). "Three four?" Five 3.14 six!\nSeven\n\neight nine'
    for inside, whole in (
        ("two", "One (two)."),
        ("four", '"Three four?"'),
        (".14", "Five 3.14 six!"),
        ("Seven", "Seven"),
        ("nine", "eight nine"),
        ("four?\" Five", '"Three four?" Five 3.14 six!'),
    ):
        first = text.index(inside)
        start, end = sentence(text, first, first + len(inside))
        assert text[start:end] == whole
    long = "word " * 500
    start, end = sentence(long, 1000, 1004)
    assert SOURCE_CHARS < end - start < 2 * SOURCE_CHARS + 10 and long[start - 1] == " " and long[end] == " "
    assert sentence("x" * 2000, 1000, 1001) == (1000 - SOURCE_CHARS, 1001 + SOURCE_CHARS)


def test_passages() -> None:
    words = [f"w{i}{'.' if i % 10 == 9 else ''} " for i in range(100)]
    text, ends = text_of(range(100), lambda token: words[token].encode())

    def found(*at: int, n: int = 5, share: float = 1.0) -> list[tuple[int, int]]:
        weights = np.zeros(100, np.float32)
        for i, p in enumerate(at):
            weights[p] = share**i
        return [one.positions for one in passages(weights, text, ends, n)]

    assert found(35) == [(30, 40)]
    assert found(35, 72, share=0.9) == [(30, 40), (70, 80)]
    assert found(72, 35, share=0.9) == [(70, 80), (30, 40)]
    assert found(35, 45) == [(30, 50)], "neighbours become one"
    assert found(35, 72, share=0.3) == [(30, 40)], "what was hardly looked at is none"
    assert found(15, 35, 55, 75, n=2) == [(10, 20), (30, 40)]
    assert found(*range(RECALL_SINKS)) == [] or found(0) == []
