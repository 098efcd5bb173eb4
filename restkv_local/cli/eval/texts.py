"""The sub-commands of restkv-eval that read on in a text: fidelity and ppl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ...eval.fidelity import CONTINUATION
from ...eval.grid import Grid
from ...eval.ppl import WINDOWS
from ...eval.texts import KINDS, digests
from ..failure import Command
from ..options import CONTEXT_SETTINGS
from .options import CONVENTION, grid_options, texts
from .show import run_command


@click.command(
    cls=Command, context_settings=CONTEXT_SETTINGS,
    help=f"""How near predictions are to those of the full cache, along a given continuation of a text.

kl: KL(full || evicted) in nats; top1: share of positions with the same likeliest token; log_prob: mean log-probability
of the continuation's tokens.

{CONVENTION}
""",
)  # fmt: skip
@texts(*KINDS)
@click.option(
    "--continuation", type=click.IntRange(1, 4096), default=CONTINUATION, show_default=True, metavar="TOKENS",
    help="Tokens of the text behind each context that are predicted. Each takes 4 bytes x vocabulary on disk.",
)  # fmt: skip
@grid_options(contexts=(2048,), prefills=("exact",), samples=4, cell="text or kind and length")
def fidelity(
    ctx: click.Context, /, files: tuple[str, ...], kinds: tuple[str, ...], continuation: int, grid: Grid, out: Path,
    **rest: Any,
) -> None:  # fmt: skip
    from ...eval.fidelity import batches

    options: dict[str, Any] = {"continuation": continuation, "texts": digests(files)}

    def make_batches(make: Callable[..., Any]) -> Any:
        return batches(
            grid, make, out, files=files, kinds=kinds, continuation=continuation, samples=grid.samples or 1,
            options=options,
        )  # fmt: skip

    run_command(ctx, "fidelity", make_batches, grid=grid, out=out, **rest)


@click.command(
    cls=Command, context_settings=CONTEXT_SETTINGS,
    help=f"""Perplexity of a long text along its positions, read as it comes.

Every token is predicted from what the cache still holds. --contexts: how far a text is read.

{CONVENTION}
""",
)  # fmt: skip
@texts(*KINDS)
@click.option(
    "--windows", type=click.IntRange(1, 1000), default=WINDOWS, show_default=True,
    help="Equal stretches of the text; each has a row in the report.",
)
@grid_options(contexts=(8192,), prefills=("stream",), samples=1, cell="text or kind and length")
def ppl(
    ctx: click.Context, /, files: tuple[str, ...], kinds: tuple[str, ...], windows: int, grid: Grid, out: Path,
    **rest: Any,
) -> None:  # fmt: skip
    from ...eval.ppl import batches

    options: dict[str, Any] = {"windows": windows, "texts": digests(files)}

    def make_batches(make: Callable[..., Any]) -> Any:
        return batches(
            grid, make, files=files, kinds=kinds, windows=windows, samples=grid.samples or 1, options=options
        )

    run_command(ctx, "ppl", make_batches, grid=grid, out=out, **rest)
