"""The question of one call: `guide=`, and which question the report says that the cells were chosen for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines import TEXT, TINY, load
from restkv_local.config import QUESTION_SHOWN
from restkv_local.errors import ConfigError, LibraryError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

EVICT = TINY.with_(budget=64, reserve=192)
QUESTION, OTHER = "Who keeps the weather?", "What do the ships bring from the mountains?"


@pytest.fixture(scope="module")
def guided_engine(chatty: Path) -> Iterator[Engine]:
    with load(chatty, n_ctx=2048, evict=EVICT.with_(prefill="guided")) as engine:
        yield engine


@pytest.fixture
def guided(guided_engine: Engine) -> Iterator[Engine]:
    guided_engine.reset()
    yield guided_engine
    guided_engine.guide = None


def kept(engine: Engine) -> list[list[int]]:
    return [engine.kept(layer, head).tolist() for layer in range(2) for head in range(2)]


def ask(engine: Engine, text: str, **options: Any) -> list[list[int]]:
    """Ask in a chat, and look at the cells."""
    engine.reset()
    engine.create_chat_completion([{"role": "user", "content": text}], max_tokens=1, temperature=0.0, **options)
    return kept(engine)


def test_a_call_has_a_guide_of_its_own(guided: Engine) -> None:
    text = TEXT[:600]
    by_message = ask(guided, text)
    assert guided.report().question == f"... {text[-QUESTION_SHOWN:].lstrip()}", "of a long message the end"
    guided.guide = QUESTION
    by_engine = ask(guided, text)
    assert guided.report().question == QUESTION
    by_call = ask(guided, text, guide=OTHER)
    assert guided.report().question == OTHER and guided.guide == QUESTION
    assert by_call != by_engine != by_message
    assert ask(guided, text) == by_engine, "only that call"
    guided.guide = None
    assert ask(guided, text, guide=QUESTION) == by_engine
    assert ask(guided, text) == by_message


def test_a_completion_and_a_stream_have_one_too(guided: Engine) -> None:
    def complete(**options: Any) -> list[list[int]]:
        guided.reset()
        found = guided.create_completion(TEXT[:600], max_tokens=2, temperature=0.0, **options)
        if options.get("stream"):
            list(found)
        assert guided.report().guided_evictions > 0
        return kept(guided)

    plain = complete()
    assert guided.report().question is None, "the end of the text"
    own = complete(guide=QUESTION)
    assert own != plain and guided.report().question == QUESTION
    assert complete(guide=QUESTION, stream=True) == own
    assert complete() == plain
    with pytest.raises(ConfigError, match=r"^guide must be the text of a question, or None; got 5$"):
        complete(guide=5)


def test_the_report_names_who_chose_last(guided: Engine) -> None:
    assert guided.report().question is None
    ask(guided, TEXT[:600], guide=QUESTION)
    guided.eval(guided.tokenize(b" and"))
    assert guided.report().question == QUESTION, "nothing was chosen since"
    for token in guided.tokenize(TEXT[:250].encode()):
        guided.eval([token])
    assert guided.report().evictions[-1].guide == 0 and guided.report().question is None
    guided.reset()
    assert guided.report().question is None


def test_the_report_names_the_question_of_a_recall(chatty: Path) -> None:
    with load(chatty, n_ctx=2048, evict=EVICT.with_(archive="ram")) as engine:
        engine.recall(QUESTION)
        assert engine.report().question is None, "nothing was evicted, so nothing was chosen"
        ask(engine, TEXT[:600])
        assert engine.report().question == f"... {TEXT[200:600].lstrip()}"
        engine.recall(QUESTION)
        assert engine.report().question == QUESTION
        engine.recall(engine.tokenize(OTHER.encode(), add_bos=False))
        assert engine.report().question == OTHER
        engine.recall()
        assert engine.report().question is None
