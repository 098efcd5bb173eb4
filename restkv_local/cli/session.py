"""One conversation: messages, pending documents, and a turn of the engine. Draws nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .documents import Document, user_message
from .worker import Draw, Mailbox, Piece, run

if TYPE_CHECKING:
    from ..report import Report


class ChatEngine(Protocol):
    """What a conversation needs of `restkv_local.engine.Engine`."""

    guide: str | None

    def create_chat_completion(self, messages: list[dict[str, str]], **options: Any) -> Iterator[dict[str, Any]]: ...

    def cancel(self) -> None: ...

    def report(self) -> Report: ...


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; None leaves the choice to the engine. max_tokens None: until the model ends or the
    context is full."""

    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None

    def options(self, attempt: int) -> dict[str, Any]:
        """Arguments of create_chat_completion; attempt moves the seed, so that a second try can differ."""
        chosen: dict[str, Any] = {"max_tokens": self.max_tokens}
        if self.temperature is not None:
            chosen["temperature"] = self.temperature
        if self.seed is not None:
            chosen["seed"] = (self.seed + attempt) % 2**32
        return chosen


@dataclass(frozen=True)
class Turn:
    """What one request gave. stopped: Ctrl-C ended it; evictions: of this turn alone; report: the engine's, after."""

    answer: str
    finish: str | None
    stopped: bool
    evictions: int
    report: Report


@dataclass
class Session:
    """A conversation with an engine. `documents` wait for the next question and then become part of its message."""

    engine: ChatEngine
    mailbox: Mailbox
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    documents: list[Document] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    _question: str = ""
    _attempt: int = 0

    def ask(self, question: str, draw: Draw) -> Turn:
        """Send documents and question, stream the answer to `draw`. Interrupted before its first word, the question
        is forgotten and its documents wait again."""
        waiting = self.documents
        self.messages.append({"role": "user", "content": user_message(waiting, question)})
        self._question, self._attempt, self.documents = question, 0, []
        try:
            turn = self._answer(draw)
        except BaseException:
            self._forget(waiting)
            raise
        if turn.stopped and not turn.answer:
            self._forget(waiting)
        return turn

    def again(self, draw: Draw) -> Turn | None:
        """Answer the last question once more; None when there is none."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages:
            return None
        self._attempt += 1
        return self._answer(draw)

    def clear(self) -> None:
        """Forget messages and waiting documents; the system prompt stays."""
        self.messages, self.documents = [], []

    def _forget(self, documents: Sequence[Document]) -> None:
        self.messages.pop()
        self.documents = [*documents, *self.documents]

    def _answer(self, draw: Draw) -> Turn:
        pieces: list[str] = []
        finish: list[str] = []
        before = self.engine.report().n_evictions
        head = [{"role": "system", "content": self.system}] if self.system else []
        self.engine.guide = self._question

        def work() -> None:
            stream = self.engine.create_chat_completion(
                messages=[*head, *self.messages], stream=True, **self.sampling.options(self._attempt)
            )
            for chunk in stream:
                choice = chunk["choices"][0]
                if choice.get("finish_reason"):
                    finish.append(str(choice["finish_reason"]))
                if text := choice["delta"].get("content"):
                    pieces.append(text)
                    self.mailbox.put(Piece(text))

        stopped = run(work, self.engine.cancel, self.mailbox, draw)
        answer = "".join(pieces)
        if answer or not stopped:
            self.messages.append({"role": "assistant", "content": answer})
        report = self.engine.report()
        return Turn(answer, finish[-1] if finish else None, stopped, report.n_evictions - before, report)
