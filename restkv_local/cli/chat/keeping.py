"""A conversation goes into a session, and comes back: the commands /save, /load and /sessions."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from ...engine.documents import Document
from ...engine.session_header import SavedSession, look
from ...errors import SessionError
from ...plan.machine import size
from . import shelf
from .session import Asked, Session
from .ui import UI
from .worker import run

# A session that takes longer to save is saved at the end of a conversation, and not after each answer.
CHEAP_SECONDS = 0.5


def notes_of(session: Session) -> dict[str, Any]:
    """What of a conversation is in no message, as JSON."""
    return {
        "system": session.system,
        "documents": _plain(session.documents),
        "asked": [
            {"question": asked.question, "documents": _plain(asked.documents), "attempt": asked.attempt}
            for asked in session.asked
        ],
    }


def _plain(documents: list[Document]) -> list[dict[str, str]]:
    return [{"name": document.name, "text": document.text} for document in documents]


def _documents(value: Any) -> list[Document]:
    return [Document(_text(each["name"]), _text(each["text"])) for each in _list(value)]


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    value.encode()  # halves of characters cannot be, and raise a ValueError
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError
    return value


def _asked(value: Any) -> Asked:
    asked = Asked(_text(value["question"]), _documents(value["documents"]), value["attempt"])
    if type(asked.attempt) is not int or not 0 <= asked.attempt < 2**31:
        raise TypeError
    return asked


class _Conversation:
    """What a session holds of a conversation. Raises SessionError when it is none."""

    def __init__(self, saved: SavedSession) -> None:
        try:
            system = saved.notes["system"]
            self.system = None if system is None else _text(system)
            self.documents = _documents(saved.notes["documents"])
            self.asked = [_asked(value) for value in _list(saved.notes["asked"])]
            self.messages = [{"role": each["role"], "content": _text(each["content"])} for each in saved.messages]
            if [message["role"] for message in self.messages] != ["user", "assistant"] * len(self.asked):
                raise TypeError
        except (KeyError, TypeError, ValueError):
            raise SessionError(
                f"the session '{saved.path.stem}' holds no conversation of restkv-chat: load it with "
                "Engine.load_session"
            ) from None

    def give(self, session: Session) -> None:
        session.system, session.documents = self.system, self.documents
        session.messages, session.asked = self.messages, self.asked


def keep(session: Session, ui: UI, name: str, *, quiet: bool = False) -> None:
    """Save a conversation; Ctrl-C stops it and leaves what was saved before. quiet: nothing is said of success."""
    path, found = shelf.path_of(name), list[SavedSession]()

    def work() -> None:
        found.append(session.engine.save_session(path, messages=session.messages, notes=notes_of(session)))

    if run(work, session.engine.cancel, session.mailbox, ui.draw) and not found:
        ui.notice(f"stopped; session '{name}' is as it was")
        return
    session.name, session.save_seconds = name, found[0].seconds
    if not quiet:
        ui.notice(f"session '{name}' saved: {size(found[0].bytes)} in {found[0].seconds:.2f} s")


def take(session: Session, ui: UI, name: str) -> None:
    """Go on with a saved conversation; one that does not fit changes nothing."""
    path, found = shelf.existing(name), list[SavedSession]()
    conversation = _Conversation(look(path))

    def work() -> None:
        found.append(session.engine.load_session(path))

    if run(work, session.engine.cancel, session.mailbox, ui.draw) and not found:
        ui.notice(f"stopped; session '{name}' was not opened")
        return
    conversation.give(session)
    session.name = name
    count = len(conversation.asked)
    ui.notice(
        f"session '{name}' opened: {found[0].tokens:,} positions, {count} question{'' if count == 1 else 's'}, "
        f"{size(found[0].bytes)} in {found[0].seconds:.2f} s"
    )


def keep_if_cheap(session: Session, ui: UI) -> None:
    """After an answer, unless the last time took long."""
    if session.name is not None and (session.save_seconds or 0.0) <= CHEAP_SECONDS:
        keep(session, ui, session.name, quiet=True)


# ---- commands ------------------------------------------------------------------------------------


def save(session: Session, ui: UI, rest: str) -> None:
    """Save under a name, or under the one that the conversation has; without one it gets the time."""
    keep(session, ui, rest or session.name or f"{datetime.now():%Y-%m-%d %H.%M.%S}")


def load(session: Session, ui: UI, rest: str) -> None:
    """Go on with another conversation."""
    if not rest:
        ui.error("/load takes the name of a session; /sessions lists them")
        return
    take(session, ui, rest)


def list_sessions(session: Session, ui: UI, rest: str) -> None:
    """All sessions, the newest first."""
    rows = table()
    if rows:
        ui.table(rows)
    else:
        ui.notice("there is no session yet; /save NAME makes one")


def table() -> list[tuple[str, str]]:
    """Names of all sessions, and a line on each."""
    return [(name, line(found)) for name, found in shelf.known()]


def line(found: SavedSession | SessionError) -> str:
    """A session in one line."""
    if isinstance(found, SessionError):
        return str(found)
    return f"{found.tokens:,} positions · {size(found.bytes)} · {found.model} · {when(found)}"


def when(found: SavedSession) -> str:
    """The local time at which a session was saved."""
    try:
        return f"{datetime.fromisoformat(found.saved).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"


def first_question(path: Path) -> str:
    """The first line of what was asked first; "" when nothing was."""
    asked = _Conversation(look(path)).asked
    return asked[0].question.split("\n")[0] if asked else ""
