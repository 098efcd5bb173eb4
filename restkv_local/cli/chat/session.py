"""One conversation: messages, pending documents, and a turn of the engine. Draws nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ...config import SEED_MAX
from ...engine.documents import Document, user_message
from .worker import Draw, Mailbox, Piece, run

if TYPE_CHECKING:
    from ...engine.report import Report, Source


class ChatEngine(Protocol):
    """What a conversation needs of `restkv_local.engine.engine.Engine`."""

    guide: str | None

    def create_chat_completion(self, messages: list[dict[str, str]], **options: Any) -> Iterator[dict[str, Any]]: ...

    def cancel(self) -> None: ...

    def report(self) -> Report: ...

    def sources(self) -> Sequence[Source]: ...


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
            # SEED_MAX itself is the wish for a new seed each time; the engine takes it for the number before it
            chosen["seed"] = (min(self.seed, SEED_MAX - 1) + attempt) % SEED_MAX
        return chosen


# Of a turn the conversation holds the new answer, what it was before a question, or the answer from before /regen.
Kept = Literal["answer", "nothing", "former answer"]


@dataclass(frozen=True)
class Turn:
    """What one request gave. stopped: Ctrl-C ended it; kept: what the conversation holds of it; evictions: of this turn
    alone; report: the engine's, after."""

    answer: str
    finish: str | None
    stopped: bool
    kept: Kept
    evictions: int
    report: Report


@dataclass
class Session:
    """A conversation with an engine. `documents` wait for the next question and then become part of its message.

    `messages` holds whole exchanges only: what a turn does not finish is taken back, so that two questions never follow
    each other.
    """

    engine: ChatEngine
    mailbox: Mailbox
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    documents: list[Document] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    _question: str = ""  # of the last message, without its documents
    _attempt: int = 0

    def ask(self, question: str, draw: Draw) -> Turn:
        """Send documents and question, stream the answer to `draw`. Interrupted before its first word, the question
        is forgotten and its documents wait again."""
        message = {"role": "user", "content": user_message(self.documents, question)}
        turn = self._answer([*self.messages, message], question, 0, draw)
        if turn.stopped and not turn.answer:
            return replace(turn, kept="nothing")
        self._question, self._attempt, self.documents = question, 0, []
        self.messages = [*self.messages, message, {"role": "assistant", "content": turn.answer}]
        return turn

    def again(self, draw: Draw) -> Turn | None:
        """Answer the last question once more; None when there is none. Interrupted, the former answer stays."""
        if not self.messages:
            return None
        self._attempt += 1
        turn = self._answer(self.messages[:-1], self._question, self._attempt, draw)
        if turn.stopped and turn.finish is None:
            return replace(turn, kept="former answer")
        self.messages = [*self.messages[:-1], {"role": "assistant", "content": turn.answer}]
        return turn

    def clear(self) -> None:
        """Forget messages and waiting documents; the system prompt stays."""
        self.messages, self.documents = [], []

    def _answer(self, messages: list[dict[str, str]], question: str, attempt: int, draw: Draw) -> Turn:
        """What the engine says to `messages`, whose last one asks `question`; the conversation stays as it is."""
        pieces: list[str] = []
        finish: list[str] = []
        before = self.engine.report().n_evictions
        head = [{"role": "system", "content": self.system}] if self.system else []
        self.engine.guide = question

        def work() -> None:
            stream = self.engine.create_chat_completion(
                messages=[*head, *messages], stream=True, **self.sampling.options(attempt)
            )
            for chunk in stream:
                choice = chunk["choices"][0]
                if choice.get("finish_reason"):
                    finish.append(str(choice["finish_reason"]))
                if text := choice["delta"].get("content"):
                    pieces.append(text)
                    self.mailbox.put(Piece(text))

        stopped = run(work, self.engine.cancel, self.mailbox, draw)
        report = self.engine.report()
        answer, last = "".join(pieces), finish[-1] if finish else None
        return Turn(answer, last, stopped, "answer", report.n_evictions - before, report)
