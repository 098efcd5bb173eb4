"""`restkv-bench memory`: peak memory of restkv-chat against the length of the text it reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ...bench.footprint import ROOM, measure
from ...engine.settings import EngineSettings
from ...plan.machine import size
from ..failure import Command
from ..options import CONTEXT_SETTINGS, Contexts, engine_class, engine_options, json_option, write_json

_CONTEXTS = (8192, 65536, 131072)


def memory_table(result: dict[str, Any]) -> Table:
    """One row per context."""
    table = Table(title=f"{result['settings']['model']}: restkv-chat reads a text that fills the context")
    for name in ("context", "prompt", "KV cache", "peak memory", "evictions", "reading"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        table.add_row(
            f"{row['context']:,}",
            f"{row['prompt_tokens']:,}",
            size(row["kv_bytes"]),
            size(row["peak_rss_bytes"]),
            f"{row['evictions']:,}",
            f"{row['prefill_seconds']:.0f} s",
        )
    return table


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.option(
    "--contexts",
    type=Contexts(at_least=2 * ROOM),
    default=_CONTEXTS,
    show_default=",".join(map(str, _CONTEXTS)),
    help="Lengths of text and answer together.",
)
@engine_options(context=False)
@json_option()
@click.pass_context
def memory(ctx: click.Context, /, settings: EngineSettings, contexts: tuple[int, ...], json_file: Path | None) -> None:
    """Peak memory of restkv-chat against the length of the text.

    For each length a fresh process runs the whole program: it reads a file that fills the context, guided by a
    question, and answers.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 150)
    result: dict[str, Any] = {}
    for result in measure(settings, contexts, engine_class(ctx), lambda text: console.print(text, style="dim")):
        write_json(json_file, result)
    console.print(memory_table(result))
