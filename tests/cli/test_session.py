"""A conversation keeps whole exchanges: questions and /regen that are stopped or fail take themselves back."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from cli_fake import FakeEngine
from restkv_local.cli.chat.session import Sampling, Session
from restkv_local.cli.chat.worker import Event, Mailbox, Piece, Progress
from restkv_local.config import SEED_MAX
from restkv_local.engine.documents import Document

Draw = Callable[[Event | None], None]


def _session() -> tuple[Session, FakeEngine]:
    mailbox = Mailbox()
    engine = FakeEngine(on_progress=mailbox.progress)
    return Session(engine, mailbox), engine


def _watch(event: Event | None) -> None:
    """Draws nothing."""


def _stop_at(kind: type[Any]) -> Draw:
    """Ctrl-C when an event of a kind arrives: Progress is reading, Piece is answering."""

    def draw(event: Event | None) -> None:
        if isinstance(event, kind):
            signal.raise_signal(signal.SIGINT)

    return draw


@pytest.mark.parametrize(("question", "when"), [("lazy one", Progress), ("wordy one", Piece)])
def test_regen_stopped_gives_the_answer_from_before_back(question: str, when: type[Any]) -> None:
    session, engine = _session()
    session.ask(question, _watch)
    before = list(session.messages)
    again = session.again(_stop_at(when))
    assert again is not None and again.stopped and again.kept == "former answer"
    assert session.messages == before and before[1]["content"] == f"I heard: {question}"
    session.ask("next", _watch)  # the engine refuses roles that do not alternate
    assert [message["role"] for message in engine.requests[-1]["messages"]] == ["user", "assistant", "user"]


def test_regen_that_fails_gives_the_answer_from_before_back(monkeypatch: pytest.MonkeyPatch) -> None:
    session, engine = _session()
    session.ask("one", _watch)
    before = list(session.messages)

    def fail(**options: Any) -> Any:
        raise ValueError("no")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "create_chat_completion", fail)
        with pytest.raises(ValueError, match="no"):
            session.again(_watch)
    assert session.messages == before
    assert session.ask("next", _watch).answer == "I heard: next"


def test_regen_after_a_dropped_question_is_guided_by_the_one_before() -> None:
    session, engine = _session()
    session.ask("one", _watch)
    session.documents = [Document("d", "text")]
    dropped = session.ask("slow two", _stop_at(Progress))
    assert dropped.kept == "nothing" and len(session.messages) == 2 and [d.name for d in session.documents] == ["d"]
    again = session.again(_watch)
    assert again is not None and again.kept == "answer"
    assert engine.guides == ["one", "slow two", "one"]


@pytest.mark.parametrize("seed", [0, 7, SEED_MAX - 2, SEED_MAX - 1, SEED_MAX])
def test_every_attempt_has_a_seed_of_its_own_that_repeats(seed: int) -> None:
    drawn = [Sampling(seed=seed).options(attempt)["seed"] for attempt in range(4)]
    assert len(set(drawn)) == 4 and drawn[0] == min(seed, SEED_MAX - 1)
    assert SEED_MAX not in drawn  # a new seed each time, to llama.cpp
    assert "seed" not in Sampling().options(1)


def test_an_answer_stopped_in_its_middle_is_kept() -> None:
    session, _ = _session()
    turn = session.ask("long one", _stop_at(Piece))
    assert turn.stopped and turn.kept == "answer" and turn.answer
    assert session.messages[-1] == {"role": "assistant", "content": turn.answer}


def test_repeats_do_not_stay_in_the_conversation() -> None:
    session, _ = _session()
    turn = session.ask("stuck", _watch)
    assert turn.finish == "repetition" and turn.answer.count("over and over.") > 20
    assert session.messages[-1]["content"] == "I heard: stuck over and over."
    assert session.ask("next", _watch).finish == "stop"


def test_a_failure_while_drawing_takes_the_question_back() -> None:
    session, _ = _session()
    session.documents = [Document("d", "text")]

    def draw(event: Event | None) -> None:
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="terminal"):
        session.ask("one", draw)
    assert session.messages == [] and len(session.documents) == 1


def test_blanks_before_an_answer_are_not_drawn() -> None:
    session, _ = _session()
    drawn: list[str] = []
    turn = session.ask("blank one", lambda event: drawn.append(event.text) if isinstance(event, Piece) else None)
    assert "".join(drawn) == "I heard: blank one" and turn.answer == " \nI heard: blank one"
