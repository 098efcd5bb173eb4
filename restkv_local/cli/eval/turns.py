"""The sub-command `restkv-eval turns`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ...config import CELLS_MAX, EvictConfig
from ...eval.grid import Grid
from ...eval.turns.document import KINDS
from ...eval.turns.prompts import MODES
from ...eval.turns.rows import DEFAULT, WAYS
from ..failure import Command
from ..options import CONTEXT_SETTINGS
from .options import CONVENTION, Listed, choice, grid_options
from .show import run_command

_DEFAULT_KINDS = ("facts",)
_QUESTIONS = 6
_DOCUMENTS = 4
_WAYS = "; ".join(f"{name}: {way.summary}" for name, way in WAYS.items())


def _listed(
    flag: str, name: str, allowed: tuple[str, ...], default: tuple[str, ...], help_text: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        flag, name, type=Listed(flag[2:-1].upper(), choice(*allowed)), default=default,
        show_default=",".join(default), help=help_text,
    )  # fmt: skip


@click.command(
    cls=Command, context_settings=CONTEXT_SETTINGS,
    help=f"""One text, many questions: is anything left of the text for the second one?

Each question comes after the text was read, in random order: behind the earlier ones and their right answers (kept), or
behind the text alone (fresh). --contexts: lengths of the texts; questions and answers come on top.

log_prob: of the right answer, every token forced; score: the part of it that would be written so; found: the share of
the positions that hold the answer which are in the cells when it begins.

{CONVENTION}
""",
)  # fmt: skip
@_listed("--kinds", "kinds", tuple(KINDS), _DEFAULT_KINDS, f"Of questions: some of {', '.join(KINDS)}.")
@_listed("--rows", "ways", tuple(WAYS), DEFAULT, f"Ways to read and to ask. {_WAYS}.")
@_listed("--modes", "modes", MODES, MODES, "Whether the history is kept or each question is asked on a fresh copy.")
@click.option(
    "--questions", type=click.IntRange(1, 1000), default=_QUESTIONS, show_default=True, help="Asked about each text."
)
@click.option("--raw", is_flag=True, help="Plain text instead of the chat format: for base models.")
@click.option(
    "--stem-apart", is_flag=True,
    help="Read the beginning of an answer token by token, as an answer is. Otherwise it belongs to the question and "
    "helps to recall.",
)  # fmt: skip
@click.option(
    "--recall-every", type=click.IntRange(0, CELLS_MAX), default=EvictConfig.recall_every, show_default=True,
    metavar="N", help="In rows with an archive every N-th token of an answer recalls for itself; 0: none.",
)
@click.option(
    "--recall-below", type=click.FloatRange(0, 1, max_open=True), default=EvictConfig.recall_below, show_default=True,
    metavar="X", help="In rows with an archive a layer recalls in an answer when its query is less like the last one "
    "that did: when their cosine is below X; 0: never.",
)  # fmt: skip
@grid_options(
    contexts=(2048,), prefills=(), samples=_DOCUMENTS, cell="kind and length (documents)",
    methods=(EvictConfig().method,),
)  # fmt: skip
def turns(
    ctx: click.Context,
    /,
    kinds: tuple[str, ...],
    ways: tuple[str, ...],
    modes: tuple[str, ...],
    questions: int,
    raw: bool,
    stem_apart: bool,
    recall_every: int,
    recall_below: float,
    grid: Grid,
    out: Path,
    **rest: Any,
) -> None:
    from ...eval.turns.run import Plan, batches, check, run

    answering = {"recall_every": recall_every, "recall_below": recall_below}
    plan = Plan(kinds, ways, modes, questions, grid.samples or _DOCUMENTS, raw, stem_apart, answering)
    check(plan, grid)

    def make_batches(make: Callable[..., Any]) -> Any:
        return batches(plan, grid, make)

    run_command(ctx, "turns", make_batches, grid=grid, out=out, runner=functools.partial(run, plan), **rest)
