"""restkv-chat in a pseudo-terminal: turns, commands, several lines, interrupts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_terminal import Terminal, run_in_terminal

FAKE = Path(__file__).parents[1] / "support" / "cli_fake.py"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with run_in_terminal(tmp_path, str(FAKE), "--context", "4096") as running:
        yield running


def test_terminal_turn_commands_and_history(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("hello\r")
    terminal.sees("I heard: hello")
    terminal.sees("positions .*/4,096 · cells 32/64 · KV 6.4 kB · evictions 0")
    terminal.type("/nonsense\r")
    terminal.sees("unknown command /nonsense")
    terminal.type("/help\r")
    terminal.sees("/regen")
    terminal.type("/regen\r")
    terminal.sees("I heard: hello")
    terminal.type("/stats\r")
    terminal.sees("peak memory")
    terminal.type("/read /does/not/exist\r")
    terminal.sees("'/does/not/exist' does not exist")
    (tmp_path / "doc.txt").write_text("x " * 100)
    terminal.type(f"/read {tmp_path}/doc.txt\r")
    terminal.sees("doc.txt: 200 characters")
    terminal.type("and?\r")
    terminal.sees("I heard: and[?]")
    terminal.sees(r"evictions 1 \(\+1\)")
    terminal.type("/system be brief\r")
    terminal.sees("read again")
    terminal.type("/clear\r")
    terminal.sees("the conversation is empty")
    terminal.type("/exit\r")
    assert terminal.leaves() == 0
    history = tmp_path / "state" / "restkv-local" / "history"
    assert "+hello" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_terminal_several_lines(terminal: Terminal) -> None:
    terminal.type("first\\\rsecond\r")
    terminal.sees("I heard: second")
    terminal.type('"""one\rtwo\rthree"""\r')
    terminal.sees("I heard: three")
    terminal.type("left\x1b\rright\r")
    terminal.sees("I heard: right")
    terminal.type("\x04")
    assert terminal.leaves() == 0


def test_terminal_interrupts(terminal: Terminal) -> None:
    terminal.type("slow one\r")
    terminal.sees("reading.* tokens .*%")
    terminal.press("\x03")
    terminal.sees("stopped while reading")
    terminal.sees("positions")
    terminal.type("long one\r")
    terminal.sees("heard: long one and and")
    terminal.press("\x03")
    terminal.sees("stopped")
    terminal.sees("positions")
    terminal.type("still there\r")
    terminal.sees("I heard: still there")
    terminal.sees("positions")
    terminal.type("lazy again\r")
    terminal.sees("I heard: lazy again")
    terminal.sees("positions")
    terminal.type("/regen\r")
    terminal.sees("reading.* tokens .*%")
    terminal.press("\x03")
    terminal.sees("stopped while reading; the answer from before stays")
    terminal.sees("positions")
    terminal.type("and now\r")
    terminal.sees("I heard: and now")
    terminal.sees("positions")
    terminal.type("half a line\x03")
    terminal.type("\x03")
    terminal.sees("Ctrl-D leaves")
    terminal.type("\x04")
    assert terminal.leaves() == 0


def test_one_question_interrupted_leaves_with_130(tmp_path: Path) -> None:
    with run_in_terminal(tmp_path, str(FAKE), "--ask", "long one") as running:
        running.sees("and and")
        running.press("\x03")
        running.sees("stopped")
        assert running.leaves() == 130
