"""The tasks of restkv-eval that ask questions: one row each. A row becomes a sub-command with all shared options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ...eval.grid import Grid
from ...eval.niah import DEPTHS, KINDS
from ...eval.sample import Task
from ..failure import Command
from ..options import CONTEXT_SETTINGS
from . import families as families
from .options import CONVENTION, Listed, choice, grid_options
from .show import run_command

Option = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Row:
    """name, summary: of the sub-command. make: from the values of `options` (by parameter name) to its tasks; imports
    what it needs itself, so that nothing is loaded for a help text. samples: how many per `cell`, when not given."""

    name: str
    summary: str
    make: Callable[..., Sequence[Task]]
    options: tuple[Option, ...] = ()
    prefills: tuple[str, ...] = ("guided",)
    samples: int = 1
    cell: str = "task and length"


def _niah(kinds: tuple[str, ...], depths: int) -> Sequence[Task]:
    from ...eval.niah import Niah

    return (Niah(kinds, depths),)


# niah reads exact by default: one reading of a document then serves every question and most methods, because nothing
# is evicted before the question was read. On two cores that read 200 tokens/s with SmolLM2-135M, for contexts 2048 and
# 4096, budgets 256 and 1024 and 10 methods (20 settings, 4 documents, 16 questions per length): a reading of the
# documents takes 4 x 6144 / 200 = 123 s; it happens once for the full cache, once for h2o (its sums are its own) and
# once for all others: 3 x 123 s = 6 min. A question takes about 0.7 s (the rest of the prompt, an eviction of 4096
# cells, some 30 single tokens): 21 x 32 x 0.7 s = 8 min.
ROWS: tuple[Row, ...] = (
    Row(
        "niah",
        "Needles in a haystack: a fact in a long text, and a question about it.",
        _niah,
        options=(
            click.option(
                "--kinds", type=Listed("KIND", choice(*KINDS)), default=KINDS, show_default=",".join(KINDS),
                help="Of needles. paraphrase: shares no word with its question.",
            ),
            click.option(
                "--depths", type=click.IntRange(1, 100), default=DEPTHS, show_default=True,
                help="Places in the text: the middles of so many equal parts.",
            ),
        ),
        prefills=("exact",),
        cell="kind, depth and length",
    ),
    Row(
        "ruler",
        "RULER: retrieval, tracing and counting in generated texts, scored as published.",
        families.make_ruler,
        options=families.RULER_OPTIONS,
        samples=5,
    ),
    Row(
        "longbench",
        "LongBench: 16 English datasets from local files, scored as published.",
        families.make_longbench,
        options=families.LONGBENCH_OPTIONS,
        samples=5,
    ),
    Row(
        "infinitebench",
        "InfiniteBench: its generated tasks, and the others from local files.",
        families.make_infinitebench,
        options=families.INFINITEBENCH_OPTIONS,
        samples=5,
    ),
    Row(
        "reason",
        "Word problems, questions of science and small programs, from local files.",
        families.make_reason,
        options=families.REASON_OPTIONS,
        samples=5,
    ),
)  # fmt: skip


def command(row: Row) -> click.Command:
    """The sub-command of a row."""

    def body(
        ctx: click.Context, /, grid: Grid, out: Path, resume: bool, as_json: bool, **options: Any
    ) -> None:
        from ...eval.tasks import batches

        tasks = row.make(**options)
        samples = grid.samples or row.samples

        def make_batches(make: Callable[..., Any]) -> Any:
            return batches(tasks, grid, make, _plain(options), samples)

        run_command(ctx, row.name, make_batches, grid=grid, out=out, resume=resume, as_json=as_json)

    wrapped = grid_options(prefills=row.prefills, samples=row.samples, cell=row.cell)(body)
    for option in reversed(row.options):
        wrapped = option(wrapped)
    help_text = f"{row.summary}\n\n{CONVENTION}"
    return click.command(row.name, cls=Command, context_settings=CONTEXT_SETTINGS, help=help_text)(wrapped)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON has them, for the records."""
    def plain(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return [plain(part) for part in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in sorted(options.items())}

