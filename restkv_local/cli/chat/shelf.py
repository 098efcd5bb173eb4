"""Where conversations are kept: one file each, in a folder of the user's."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...engine.session_header import SavedSession, look
from ...errors import SessionError
from ...paths import state_folder

_FOLDER, _SUFFIX = "sessions", ".session"
_NAME = re.compile(r"\w(?:[\w .-]{0,62}\w)?")


def shelf() -> Path:
    """The folder, for nobody else to read. Raises SessionError where there is no place for it."""
    state = state_folder()
    if state is None:
        raise SessionError(
            "there is no folder for sessions: set HOME or XDG_STATE_HOME to one that can be written"
        )
    try:
        folder = state / _FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SessionError(f"no folder for sessions can be made in '{state}' ({error.strerror})") from None
    return folder


def path_of(name: str) -> Path:
    """The file of a session. Raises SessionError for what is no name: it must not lead to another folder."""
    if not _NAME.fullmatch(name):
        raise SessionError(
            f"'{name}' is no name for a session: take letters, digits, spaces, dots, - and _, at most 64, "
            f"and a letter or digit at both ends"
        )
    return shelf() / (name + _SUFFIX)


def existing(name: str) -> Path:
    """The file of a session that is there. Raises SessionError, with the names that are there."""
    path = path_of(name)
    if not path.is_file():
        known = ", ".join(names()) or "none"
        raise SessionError(f"there is no session '{name}'; there are: {known}")
    return path


def names() -> list[str]:
    """Of all sessions, the newest first."""
    found = []
    with os.scandir(shelf()) as entries:
        for entry in entries:
            name = entry.name.removesuffix(_SUFFIX)
            if name != entry.name and _NAME.fullmatch(name) and entry.is_file():
                found.append((-entry.stat().st_mtime_ns, name))
    return [name for _, name in sorted(found)]


def newest() -> str:
    """The name of the session that was saved last. Raises SessionError when there is none."""
    found = names()
    if not found:
        raise SessionError("there is no session to continue; start one with --session NAME, or /save NAME")
    return found[0]


def known() -> list[tuple[str, SavedSession | SessionError]]:
    """All sessions and what they say of themselves, the newest first; of one that cannot be read, why."""
    found: list[tuple[str, SavedSession | SessionError]] = []
    for name in names():
        try:
            found.append((name, look(path_of(name))))
        except SessionError as error:
            found.append((name, error))
    return found


def delete(name: str) -> None:
    """Take a session away. Raises SessionError."""
    path = existing(name)
    try:
        path.unlink()
    except OSError as error:
        raise SessionError(f"the session '{name}' cannot be deleted ({error.strerror})") from None
