"""Programs in a pseudo-terminal, for tests of the command lines."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restkv_local.cli.chat import main as chat

pexpect = pytest.importorskip("pexpect")

# Children test the package that this process tests, installed or not.
ROOT = Path(chat.__file__).resolve().parents[3]


class Terminal:
    """A program in a pseudo-terminal; stdout and stderr both go to it."""

    def __init__(self, child: Any) -> None:
        self.child = child

    def type(self, text: str) -> None:
        """Send text when the prompt is there: the line editor then turns bracketed paste on."""
        self.sees("\x1b\\[[?]2004h")
        self.child.send(text)

    def press(self, keys: str) -> None:
        """Send keys now."""
        self.child.send(keys)

    def sees(self, pattern: str, timeout: float = 20) -> None:
        self.child.expect(pattern, timeout=timeout)

    def leaves(self) -> int:
        self.child.expect(pexpect.EOF, timeout=20)
        self.child.close()
        return int(self.child.exitstatus)


@contextlib.contextmanager
def run_in_terminal(
    tmp_path: Path, *command: str, columns: int = 150, variables: dict[str, str] | None = None
) -> Iterator[Terminal]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        **(variables or {}),
    }
    child = pexpect.spawn(
        sys.executable, list(command), env=environment, encoding="utf-8", dimensions=(30, columns)
    )
    try:
        yield Terminal(child)
    finally:
        child.close(force=True)
