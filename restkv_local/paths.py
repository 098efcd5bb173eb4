"""Folders of the user, paths as they are typed, and names of files as they are shown."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

_APP = "restkv-local"
_ON_DISK = "/var/tmp"


def cache_folder(name: str) -> Path | None:
    """A folder for what is kept between runs, and can be made again; None where there is no place for it.

    Below $RESTKV_CACHE, else the platform's cache folder: the same for the tools, which cannot ask platformdirs
    (tools/lib/setup/source.py).
    """
    if own := os.environ.get("RESTKV_CACHE"):
        return _made(lambda: os.path.abspath(os.path.expanduser(own)), name)
    return _made(lambda: platformdirs.user_cache_dir(_APP, appauthor=False), name)


def state_folder() -> Path | None:
    """A folder for what belongs to the user, such as a history; None where there is no place for it."""
    return _made(lambda: platformdirs.user_state_dir(_APP, appauthor=False))


def work_folder() -> Path:
    """A folder for large files that go when the program ends: the temporary folder of $TMPDIR or the system's.

    On many Linux systems /tmp lies in memory, and /var/tmp is the one on a disk.
    """
    named = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    if not named and os.path.isdir(_ON_DISK) and os.access(_ON_DISK, os.W_OK | os.X_OK):
        return Path(_ON_DISK)
    return Path(tempfile.gettempdir())


def typed(path: str | os.PathLike[str]) -> Path:
    """A path as a user types it: `~` at its start is a home folder, unless a file of just that name is there."""
    plain = Path(path)
    if not os.path.exists(plain):
        with contextlib.suppress(RuntimeError):  # no such user: `~backup.txt` is a name
            return plain.expanduser()
    return plain


def shown(path: str | os.PathLike[str]) -> str:
    """A path or name as text: bytes that are no UTF-8, which file names may hold, become replacement characters."""
    return os.fsencode(path).decode("utf-8", "replace")


def _made(folder_of: Callable[[], str], *names: str) -> Path | None:
    """A folder that platformdirs names. Without HOME and without an entry for the user it raises, or knows only `~`."""
    try:
        folder = Path(folder_of(), *names)
        if not folder.is_absolute():
            return None
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder
