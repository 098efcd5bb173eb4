"""All drawing of restkv-chat. The answer goes to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..words import in_options
from .figures import recall_line, report_rows, turn_line
from .reading import Reading
from .session import Turn
from .worker import Event, Notice, Piece, Progress

if TYPE_CHECKING:
    from ...engine.report import Report

# What a stopped turn leaves, by Turn.kept.
_KEPT = {"answer": "", "nothing": "; the question was dropped", "former answer": "; the answer from before stays"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """A text without control characters other than tabs and the ends of lines."""
    return _CONTROL.sub("", text)


@contextlib.contextmanager
def no_echo() -> Iterator[None]:
    """While inside, a terminal does not write what is typed, Ctrl-C too, into bars and answers; a prompt shows it."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    try:
        at = sys.stdin.fileno()
        before = termios.tcgetattr(at)
    except (OSError, ValueError, termios.error):  # no terminal, or no file
        yield
        return
    modes = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(at, termios.TCSADRAIN, modes)
    try:
        yield
    finally:
        termios.tcsetattr(at, termios.TCSADRAIN, before)


class UI:
    """Draws a conversation. quiet: the answer is not streamed (the caller prints it). typed: commands can be typed, and
    are named as the way out; else options are."""

    def __init__(self, *, quiet: bool = False, typed: bool = False) -> None:
        self.quiet, self.typed = quiet, typed
        self.console = Console(stderr=True, highlight=False)
        self.said: list[str] = []  # all notices, for --json
        self._tty = sys.stdout.isatty()
        self._reading: Reading | None = None
        self._column = 0  # of the cursor in the answer, 0 at a line start

    # ---- a turn ----

    def begin_turn(self, names: Sequence[str] = ()) -> None:
        """Before a request: forget the state of the last one. names: of documents that will be read."""
        name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more" if names else ""
        self._reading, self._column = Reading(self.console, printable(name)), 0

    def draw(self, event: Event | None) -> None:
        """Show one event of the engine; None lets the clock of the reading go on."""
        if isinstance(event, Piece):
            self._end_reading()
            if not self.quiet:
                self._write(event.text)
        elif isinstance(event, Notice):
            self.notice(in_options(event.text))
        elif self._reading is not None:
            if isinstance(event, Progress):
                self._reading.update(event.done, event.total)
            else:
                self._reading.tick()

    def end_turn(self, turn: Turn | None) -> None:
        """After a request: take the bar away, end the line, and print dim lines of figures (none for a failure)."""
        self._end_reading()
        if self._column:
            self._write("\n")
        if turn is None:
            return
        if ending := self._ending(turn):
            self.notice(ending)
        for line in (turn_line(turn), recall_line(turn.report)):
            if line:
                self._dim(line)

    def _ending(self, turn: Turn) -> str:
        """Why an answer is not what it could be; "" when nothing is to be said."""
        limit, repetition, context = (
            ("/set max-tokens N allows more", "/set repetition allow lets it go on", "/clear or /drop makes room")
            if self.typed
            else ("--max-tokens N allows more", "--set repetition=allow lets it go on", "--context N has room for more")
        )
        if turn.stopped:
            return ("stopped" if turn.answer else "stopped while reading") + _KEPT[turn.kept]
        if turn.finish == "repetition":
            return f"the answer repeated itself and was stopped; {repetition}"
        if turn.finish == "length":
            return f"the answer was cut at {turn.report.completion_tokens:,} tokens; {limit}"
        if turn.finish == "context":
            return f"the answer was cut: all {turn.report.context:,} positions of the context are used; {context}"
        return "" if turn.answer.strip() else "the answer is empty: the model ended it at once"

    def _write(self, text: str) -> None:
        # A model, or a document that it repeats, must not drive the terminal with control sequences.
        printed = printable(text) if self._tty else text
        sys.stdout.write(printed)
        sys.stdout.flush()
        self._column = 0 if printed.endswith("\n") else self._column + len(printed)

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.end()
            self._reading = None

    # ---- outside a turn ----

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """In a terminal, show that something is going on, until it ends."""
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            yield
            return
        with self.console.status(text):
            yield

    def notice(self, text: str) -> None:
        """A dim sentence."""
        if self._column:
            self._write("\n")
        self.said.append(text)
        self._dim(text)

    def error(self, text: str) -> None:
        """A failure that does not end the program."""
        if self._column:
            self._write("\n")
        self.console.print(f"[bold red]Error:[/] {escape(text)}", soft_wrap=not self.console.is_terminal)

    def _dim(self, text: str) -> None:
        """A line; in a terminal it is broken between words."""
        self.console.print(text, style="dim", markup=False, soft_wrap=not self.console.is_terminal)

    def table(self, rows: list[tuple[str, str]]) -> None:
        """Names and what belongs to them."""
        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(Text(name, style="bold"), Text(value))
        self.console.print(table)

    def stats(self, report: Report) -> None:
        """The engine's report."""
        self.table(report_rows(report))
