"""restkv-bench: measure the evicting cache against llama.cpp's own, on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ..._version import __version__
from ...bench.speed import STOCK_FILLS, STOCK_PREFILLS, SpeedSettings, measure, measure_peak
from ...engine.settings import EngineSettings
from ..failure import Command
from ..options import CONTEXT_SETTINGS, Contexts, engine_class, engine_options, json_option, write_json
from ..program import Program
from .archive import archive
from .device import device
from .memory import memory
from .needle import needle
from .shapes import shapes
from .tables import speed_table

_PAIRS = 3
_DECODE_TOKENS = 32
_CONTEXTS = (4096, 16384, 131072)
_EPILOG = "Try: restkv-bench speed --contexts 4096,16384 --json speed.json"


@click.group(cls=Program, context_settings=CONTEXT_SETTINGS, epilog=_EPILOG)
@click.version_option(__version__)
def main() -> None:
    """Measure on this machine. Figures go to a table on standard error and to a JSON file."""


@main.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.option("--contexts", type=Contexts(), default=_CONTEXTS, show_default="4096,16384,131072", help="Text lengths.")
@engine_options(context=False)
@click.option(
    "--decode-tokens", type=click.IntRange(min=1), default=_DECODE_TOKENS, show_default=True,
    help="Steps per measurement of decoding.",
)
@click.option(
    "--pairs", type=click.IntRange(min=1), default=_PAIRS, show_default=True,
    help="Pairs of measurements, evicting and stock in turn; medians are reported.",
)
@click.option(
    "--prefill-limit", type=click.IntRange(min=1), default=None, metavar="TOKENS",
    help="Read at most this much of the text with the evicting cache; the notes say so.",
)
@click.option(
    "--stock-prefill", type=click.Choice(STOCK_PREFILLS), default=STOCK_PREFILLS[0], show_default=True,
    help="Read the text with the full cache whole (full), or some batches of it at several depths whose times are "
    "integrated (sampled); auto samples above 16384 tokens.",
)
@click.option(
    "--stock-fill", type=click.Choice(STOCK_FILLS), default=STOCK_FILLS[0], show_default=True,
    help="What a sampled full cache is filled with: copies of one text's cells (synthetic), or the real text (real).",
)
@json_option()
@click.pass_context
def speed(
    ctx: click.Context,
    /,
    settings: EngineSettings,
    contexts: tuple[int, ...],
    json_file: Path | None,
    **options: Any,
) -> None:
    """Decode and prefill, evicting and stock full cache alternating in one run.

    Both use the same library, weights, threads and batch size. Memory is the peak of a process of its own that only
    reads the text with the evicting cache.
    """
    from rich.console import Console

    # A log takes the whole table; a terminal has its own width.
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 150)

    def say(text: str) -> None:
        console.print(text, style="dim")

    result = measure(settings, SpeedSettings(contexts=contexts, **options), engine_class(ctx), say)
    console.print(speed_table(result))
    for row in result["rows"]:
        for note in row["notes"]:
            console.print(f"{row['context']:,}: {note}", style="dim", markup=False)
    write_json(json_file, result)


main.add_command(archive)
main.add_command(device)
main.add_command(memory)
main.add_command(needle)
main.add_command(shapes)


@main.command("_peak", hidden=True, cls=Command)
@engine_options()
@click.option("--tokens", type=click.IntRange(min=1), required=True)
@click.pass_context
def peak(ctx: click.Context, /, settings: EngineSettings, tokens: int) -> None:
    """Read a text of so many tokens in this fresh process and print the peak memory as JSON."""
    click.echo(json.dumps(measure_peak(settings, tokens, engine_class(ctx))))


if __name__ == "__main__":
    main()
