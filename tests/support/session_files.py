"""Session files that were changed by hand, their checksums made right again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from restkv_local.engine.session_file import SECTIONS, SessionFile, write_session


def forged(
    path: Path, to: Path, change: Mapping[str, Callable[[bytes], bytes]], header: Mapping[str, Any] | None = None
) -> Path:
    """A copy of a session whose sections went through functions, and whose header has other values."""
    with SessionFile(path) as file:
        parts = {name: change.get(name, bytes)(bytes(file.read(name))) for name in SECTIONS}
        write_session(to, {**file.header, **(header or {})}, {name: (len(x), [x]) for name, x in parts.items()})
    return to
