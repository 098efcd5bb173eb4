"""What a session file says of itself; no library is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import SEED_MAX
from ..errors import SessionError
from ..paths import shown
from .session_file import SessionFile

_SAID = 100


@dataclass(frozen=True)
class SavedSession:
    """What a session file says of itself.

    tokens: positions of its text; rows: of them, in its archive. saved: when, in UTC. messages, notes: what the caller
    gave, any JSON. bytes: of the file. seconds: that saving or loading took; 0 where it was only looked at.
    """

    path: Path
    tokens: int
    rows: int
    model: str
    saved: str
    bytes: int
    messages: list[Any] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def look(path: str | Path) -> SavedSession:
    """What a session file says of itself; no model is needed, and only its header is read. Raises SessionError."""
    with SessionFile(path) as file:
        return about_of(file, Header(file))


class Header:
    """The header of a session, every field of the type that it must have."""

    def __init__(self, file: SessionFile) -> None:
        self._file = file
        self.tokens = self._number("tokens", 2**31 - 1)
        self.rows = self._number("rows", 2**31 - 1)
        self.seed = self._number("seed", SEED_MAX)
        self.archive = self._of("archive", (list, type(None)))
        self.evicted = self._of("evicted", (bool,))
        self.origin = self._of("origin", (dict,))
        self.messages = self._of("messages", (list,))
        self.notes = self._of("notes", (dict,))
        self.model = said(self._of("model", (str,)))
        self.saved = self._of("saved", (str,))

    def _of(self, name: str, kinds: tuple[type, ...]) -> Any:
        value = self._file.header.get(name)
        if type(value) not in kinds:
            raise refused(self._file.path, f"is damaged (its {name} is of another type): save it again")
        return value

    def _number(self, name: str, most: int) -> int:
        value: int = self._of(name, (int,))
        if not 0 <= value <= most:
            raise refused(self._file.path, f"is damaged (its {name} is {said(value)}): save it again")
        return value


def refused(path: Path, why: str) -> SessionError:
    """A sentence about a session."""
    return SessionError(f"the session '{shown(path)}' {why}")


def said(value: Any) -> str:
    """What a file says, for a sentence: one line, not too long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value)[: _SAID + 1])
    return text if len(text) <= _SAID else f"{text[:_SAID]}..."


def about_of(file: SessionFile, header: Header) -> SavedSession:
    """What a session says of itself."""
    return SavedSession(
        file.path, header.tokens, header.rows, header.model, header.saved, file.bytes, header.messages, header.notes
    )
