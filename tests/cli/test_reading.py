"""Reading shows itself: name and tokens at once, the speed of finished chunks, what is left; a bar or plain lines."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from restkv_local.cli.chat import reading
from restkv_local.cli.chat.reading import Reading, duration


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reading, "time", clock)
    return clock


class Screen:
    """What was printed since the last look, with the control sequences taken out."""

    def __init__(self, *, terminal: bool, width: int = 100) -> None:
        self._file = io.StringIO()
        environment = {"TERM": "xterm-256color"} if terminal else {"TERM": "dumb"}
        self.console = Console(file=self._file, force_terminal=terminal, width=width, _environ=environment)

    @property
    def raw(self) -> str:
        return self._file.getvalue()

    def new(self) -> str:
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._file.getvalue()).replace("\r", "\n")
        self._file.truncate(0)
        self._file.seek(0)
        return text


def test_the_name_and_the_tokens_are_said_at_once(clock: Clock) -> None:
    for screen in (Screen(terminal=True), Screen(terminal=False)):
        Reading(screen.console, "book.txt").update(0, 6012)
        assert screen.new().startswith("reading book.txt: 6,012 tokens")


def test_figures_are_of_finished_chunks(clock: Clock) -> None:
    screen = Screen(terminal=True)
    shown = Reading(screen.console, "book.txt")
    shown.update(0, 4096)
    assert "0 of 4,096 tokens (0 %), 0 s" in screen.new()
    clock.now += 2
    shown.tick()
    assert "0 of 4,096 tokens (0 %), 2 s" in screen.new()
    shown.update(512, 4096)
    assert "512 of 4,096 tokens (12 %), 256 tok/s, about 14 s left" in screen.new()
    clock.now += 1.5  # inside the second chunk the speed stays, and what is left runs down
    shown.tick()
    assert "512 of 4,096 tokens (12 %), 256 tok/s, about 12 s left" in screen.new()
    clock.now += 2.5
    shown.update(1024, 4096)
    assert "171 tok/s, about 18 s left" in screen.new()
    shown.update(4096, 4096)
    shown.end()
    assert screen.raw.endswith(("\x1b[2K", "\x1b[?25h\r\x1b[1A\x1b[2K")), screen.raw[-40:]  # the bar's line is erased


def test_a_narrow_terminal_gets_short_figures_on_one_line(clock: Clock) -> None:
    screen = Screen(terminal=True, width=40)
    shown = Reading(screen.console, "")
    shown.update(0, 100000)
    clock.now += 1
    shown.update(512, 100000)
    frames = [line for line in screen.new().split("\n") if line.strip()]
    assert frames and frames[-1].endswith(" 1 %, 512 tok/s, 3 min left"), frames
    assert all(len(frame) <= 40 for frame in frames)


def test_a_short_question_shows_nothing(clock: Clock) -> None:
    screen = Screen(terminal=True)
    shown = Reading(screen.console)
    shown.update(0, 30)
    clock.now += 0.2
    shown.update(30, 30)
    shown.end()
    assert screen.raw == ""


def test_without_a_terminal_lines_come_less_and_less_often(clock: Clock) -> None:
    screen = Screen(terminal=False)
    shown = Reading(screen.console, "book.txt")
    shown.update(0, 100000)
    screen.new()
    said = []
    for _ in range(600):
        clock.now += 1
        shown.update(int(clock.now - 100) * 100, 100000)
        said += [(clock.now - 100, line) for line in screen.new().splitlines()]
    assert said[0] == (3.0, "read 300 of 100,000 tokens (0 %), 100 tok/s, about 17 min left")
    gaps = [after[0] - before[0] for before, after in zip(said, said[1:], strict=False)]
    assert gaps == sorted(gaps) and gaps[-1] == 60 and len(said) < 20


def test_a_chunk_that_takes_long_is_no_silence(clock: Clock) -> None:
    screen = Screen(terminal=False)
    shown = Reading(screen.console, "book.txt")
    shown.update(0, 1000)
    screen.new()
    clock.now += 4
    shown.tick()
    assert screen.new() == "read 0 of 1,000 tokens (0 %), 4 s\n"


def test_durations() -> None:
    said = ["0 s", "89 s", "2 min", "10 min", "1 h 30 min", "2 h 2 min"]
    assert [duration(seconds) for seconds in (0, 89, 90, 600, 5400, 7300)] == said
