"""What restkv-eval shows while it runs and when it ends; all but the JSON goes to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ...eval.grid import Grid
from ...eval.report.cells import mean_text
from ...eval.results import ResultFile
from ...eval.run import run
from ...eval.summary import Row, rows
from ...plan.machine import size
from ..options import engine_class
from ..program import EXIT_STOPPED

_SKIPPED = ("full_log_prob",)


class Bar:
    """One progress bar over the whole grid; where standard error is no terminal, a line per setting."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("preparing", total=None)
        self._text = ""

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def total(self, n: int) -> None:
        """Measurements of the whole grid."""
        self._bar.update(self._task, total=n)

    def step(self, text: str, n: int = 1) -> None:
        """So many are done; what runs now."""
        self._bar.update(self._task, advance=n, description=text)
        if text != self._text and not self._console.is_terminal:
            task = self._bar.tasks[0]
            self.say(f"{task.completed:.0f} of {task.total or 0:.0f}: {text}")
        self._text = text

    def say(self, text: str) -> None:
        """A sentence for the user."""
        self._console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def run_command(
    ctx: click.Context,
    name: str,
    make_batches: Callable[[Callable[..., Any]], Sequence[Any]],
    *,
    grid: Grid,
    out: Path,
    resume: bool,
    as_json: bool,
    runner: Callable[[Grid, Sequence[Any], Callable[..., Any], ResultFile, Bar], None] = run,
) -> None:
    """Run a sub-command's batches into DIR/NAME.jsonl, then show the summary. runner: what runs them."""
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 200)
    make = engine_class(ctx)
    with Bar(console) as bar, ResultFile(out, name, resume=resume, say=bar.say) as results:
        n_before = len(results.records)
        try:
            batches = make_batches(make)
            runner(grid, batches, make, results, bar)
        except KeyboardInterrupt:
            bar.say(f"stopped; {len(results.records)} results are in {results.path}; go on with --out {out} --resume")
            raise SystemExit(EXIT_STOPPED) from None
    found = rows(results.records)
    console.print(summary_table(found))
    where = f"{results.path}; draw it with: restkv-eval report {out} --html report.html"
    console.print(where, style="dim", markup=False, soft_wrap=True)
    if as_json:
        summary = {
            "task": name,
            "file": str(results.path),
            "results": len(results.records),
            "new": len(results.records) - n_before,
            "rows": [row.json() for row in found],
        }
        click.echo(json.dumps(summary, ensure_ascii=False))


def summary_table(found: Sequence[Row]) -> Table:
    """One line per task, context and setting."""
    names = [name for name in dict.fromkeys(n for row in found for n in row.means) if name not in _SKIPPED]
    table = Table()
    for title in ("task", "context", "method", "prefill"):
        table.add_column(title)
    for title in ("budget", "memory", "samples"):
        table.add_column(title, justify="right")
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("to full", justify="right")
    for row in found:
        cells = [row.task, f"{row.context:,}", row.name, row.prefill or "-", budget_text(row), size(row.bytes)]
        cells.append(str(row.n))
        for name in names:
            cells += [mean_text(row.means.get(name)), mean_text(row.differences.get(name), sign=True)]
        table.add_row(*cells)
    return table


def budget_text(row: Row) -> str:
    """A budget for a table."""
    return "-" if row.budget is None else f"{row.budget:,}" if isinstance(row.budget, int) else row.budget
