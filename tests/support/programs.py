"""Programs that a test puts on the PATH."""

from __future__ import annotations

from pathlib import Path


def program(folder: Path, name: str, says: str = "", code: int = 0) -> Path:
    """A program that prints one line."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path
