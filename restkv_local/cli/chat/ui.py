"""All drawing of restkv-chat. The answer goes to standard output, everything else to standard error."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .figures import recall_line, report_rows, turn_line
from .session import Turn
from .worker import Event, Notice, Piece
from .worker import Progress as Reading

if TYPE_CHECKING:
    from ...engine.report import Report

# A prompt that is read within this many seconds shows no bar.
_BAR_AFTER = 0.3
# What a stopped turn leaves, by Turn.kept.
_KEPT = {"answer": "", "nothing": "; the question was dropped", "former answer": "; the answer from before stays"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _Speed(ProgressColumn):
    """Tokens per second since the start of the prompt."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        return Text(f"{task.completed / elapsed:.0f} tok/s" if elapsed > 0 and task.completed else "- tok/s")


class UI:
    """Draws a conversation. quiet: the answer is not streamed (the caller prints it)."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self._tty = sys.stdout.isatty()
        self._bar: Progress | None = None
        self._started: float | None = None
        self._reading = True
        self._column = 0  # of the cursor in the answer, 0 at a line start

    # ---- a turn ----

    def begin_turn(self) -> None:
        """Before a request: forget the state of the last one."""
        self._started, self._reading, self._column = None, True, 0

    def draw(self, event: Event | None) -> None:
        """Show one event of the engine; None lets the bar's clock go on."""
        if isinstance(event, Piece):
            self._end_bar()
            self._reading = False
            if not self.quiet:
                self._write(event.text)
        elif isinstance(event, Notice):
            self.notice(event.text)
        elif isinstance(event, Reading) and self._reading:
            self._draw_bar(event.done, event.total)
        elif self._bar is not None:
            self._bar.refresh()

    def end_turn(self, turn: Turn | None) -> None:
        """After a request: close the bar, end the line, and print dim lines of figures (none for a failure)."""
        self._end_bar()
        if self._column:
            self._write("\n")
        if turn is None:
            return
        if turn.stopped:
            self.notice(("stopped" if turn.answer else "stopped while reading") + _KEPT[turn.kept])
        elif turn.finish == "length":
            self.notice("the answer was cut: --max-tokens or the context is used up")
        for line in (turn_line(turn), recall_line(turn.report)):
            if line:
                self.console.print(line, style="dim", markup=False, soft_wrap=True)

    def _write(self, text: str) -> None:
        # A model, or a document that it repeats, must not drive the terminal with control sequences.
        shown = _CONTROL.sub("", text) if self._tty else text
        sys.stdout.write(shown)
        sys.stdout.flush()
        self._column = 0 if shown.endswith("\n") else self._column + len(shown)

    def _draw_bar(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._started is None:
            self._started = now
        if self._bar is None:
            if not self.console.is_terminal or total <= 1 or done >= total or now - self._started < _BAR_AFTER:
                return
            self._bar = Progress(
                TextColumn("reading"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                _Speed(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
                auto_refresh=False,
            )
            self._bar.start()
            self._bar.add_task("reading", total=total, completed=done)
            # The bar appears late: its clock starts where the reading did.
            self._bar.tasks[0].start_time = self._bar.get_time() - (now - self._started)
        self._bar.update(self._bar.tasks[0].id, total=total, completed=done, refresh=True)
        if done >= total:
            self._end_bar()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    # ---- outside a turn ----

    def notice(self, text: str) -> None:
        """A dim sentence."""
        if self._column:
            self._write("\n")
        self.console.print(text, style="dim", markup=False, soft_wrap=True)

    def error(self, text: str) -> None:
        """A failure that does not end the program."""
        if self._column:
            self._write("\n")
        self.console.print(f"[bold red]Error:[/] {escape(text)}", soft_wrap=True)

    def table(self, rows: list[tuple[str, str]]) -> None:
        """Names and what belongs to them."""
        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(Text(name, style="bold"), Text(value))
        self.console.print(table)

    def stats(self, report: Report) -> None:
        """The engine's report."""
        self.table(report_rows(report))
