"""One conversation: messages, pending documents, and a turn of the engine. Draws nothing."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ...engine.documents import Document, user_message
from .repetition import TAIL, once, period
from .sampling import Sampling
from .worker import Draw, Mailbox, Piece, run

if TYPE_CHECKING:
    from ...engine.report import Report, Source
    from ...engine.session_header import SavedSession


class ChatEngine(Protocol):
    """What a conversation needs of `restkv_local.engine.engine.Engine`."""

    guide: str | None

    def create_chat_completion(self, messages: list[dict[str, str]], **options: Any) -> Generator[Any, None, None]: ...

    def cancel(self) -> None: ...

    def report(self) -> Report: ...

    def sources(self) -> Sequence[Source]: ...

    def save_session(self, path: Path, *, messages: list[Any], notes: dict[str, Any]) -> SavedSession: ...

    def load_session(self, path: Path) -> SavedSession: ...


# Of a turn the conversation holds the new answer, what it was before a question, or the answer from before /regen.
Kept = Literal["answer", "nothing", "former answer"]


@dataclass(frozen=True)
class Turn:
    """What one request gave. finish: why the answer ended: "stop" (the model ended it), "length" (its limit), "context"
    (no position is left), "repetition", or None where it was stopped or nothing was answered. stopped: Ctrl-C ended it;
    kept: what the conversation holds of it; evictions: of this turn alone; report: the engine's, after."""

    answer: str
    finish: str | None
    stopped: bool
    kept: Kept
    evictions: int
    report: Report


@dataclass(frozen=True)
class Asked:
    """A question that was answered, its documents, and how often it was answered again."""

    question: str
    documents: list[Document]
    attempt: int = 0


@dataclass
class Session:
    """A conversation with an engine. `documents` wait for the next question and then become part of its message.

    `messages` holds whole exchanges only: what a turn does not finish is taken back, so that two questions never follow
    each other. system: "" is an empty one, None leaves it to the model's template. draft: what the next line starts
    with. asked: one for each pair of messages. name: of the session that it is saved in, or None; save_seconds: that
    this took the last time, or None.
    """

    engine: ChatEngine
    mailbox: Mailbox
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    documents: list[Document] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    draft: str = ""
    asked: list[Asked] = field(default_factory=list)
    name: str | None = None
    save_seconds: float | None = None

    def ask(self, question: str, draw: Draw) -> Turn:
        """Send documents and question, stream the answer to `draw`. Interrupted before its first word, the question
        is forgotten and its documents wait again."""
        message = {"role": "user", "content": user_message(self.documents, question)}
        turn = self._answer([*self.messages, message], question, 0, draw)
        if turn.stopped and not turn.answer:
            return replace(turn, kept="nothing")
        self.asked = [*self.asked, Asked(question, self.documents)]
        self.documents = []
        self.messages = [*self.messages, message, _answer(turn)]
        return turn

    def again(self, draw: Draw) -> Turn | None:
        """Answer the last question once more; None when there is none. Interrupted, the former answer stays."""
        if not self.messages:
            return None
        asked = replace(self.asked[-1], attempt=self.asked[-1].attempt + 1)
        self.asked = [*self.asked[:-1], asked]
        turn = self._answer(self.messages[:-1], asked.question, asked.attempt, draw)
        if turn.stopped and turn.finish is None:
            return replace(turn, kept="former answer")
        self.messages = [*self.messages[:-1], _answer(turn)]
        return turn

    def undo(self) -> str | None:
        """Take the last question and its answer back, and return it; its documents wait again. None: there is none."""
        if not self.asked:
            return None
        last = self.asked[-1]
        self.asked, self.messages = self.asked[:-1], self.messages[:-2]
        self.documents = [*last.documents, *self.documents]
        return last.question

    def drop(self, n: int) -> int:
        """Forget the n oldest questions with their documents and answers; returns how many there were."""
        n = min(n, len(self.asked))
        self.asked, self.messages = self.asked[n:], self.messages[2 * n :]
        return n

    def clear(self) -> None:
        """Forget messages and waiting documents; the system prompt stays."""
        self.messages, self.documents, self.asked = [], [], []

    def _answer(self, messages: list[dict[str, str]], question: str, attempt: int, draw: Draw) -> Turn:
        """What the engine says to `messages`, whose last one asks `question`; the conversation stays as it is."""
        pieces: list[str] = []
        finish: list[str] = []
        before = self.engine.report().n_evictions
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.engine.guide = question

        def work() -> None:
            tail, begun = "", False
            stream = self.engine.create_chat_completion(
                messages=[*head, *messages], stream=True, **self.sampling.options(attempt)
            )
            with closing(stream):
                for chunk in stream:
                    choice = chunk["choices"][0]
                    if choice.get("finish_reason"):
                        finish.append(str(choice["finish_reason"]))
                    if text := choice["delta"].get("content"):
                        shown = text if begun else text.lstrip()  # some formats leave the blank before it to the model
                        begun = begun or bool(shown)
                        pieces.append(text)
                        if shown:
                            self.mailbox.put(Piece(shown))
                        tail = (tail + text)[-TAIL:]
                        if self.sampling.repetition == "stop" and period(tail):
                            finish.append("repetition")
                            return

        stopped = run(work, self.engine.cancel, self.mailbox, draw)
        report = self.engine.report()
        answer, last = "".join(pieces), finish[-1] if finish else None
        if last == "length" and report.prompt_tokens + report.completion_tokens >= report.context:
            last = "context"
        return Turn(answer, last, stopped, "answer", report.n_evictions - before, report)


def _answer(turn: Turn) -> dict[str, str]:
    """The message of an answer; of one that repeats itself without the repetition, which would go on in the next."""
    return {"role": "assistant", "content": once(turn.answer) if turn.finish == "repetition" else turn.answer}
