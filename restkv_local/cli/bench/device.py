"""`restkv-bench device`: what evictions cost on the device that holds the cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ...bench.device import SAVED_MIN, SHARE_MAX, STAGES, DeviceSettings, measure
from ...check.copying import COPY_BYTES
from ...config import CELLS_MAX
from ...engine.settings import EngineSettings
from ...plan.machine import size
from ..failure import Command
from ..options import CONTEXT_SETTINGS, engine_class, engine_options, json_option, write_json

_BUDGET, _RESERVE = 4096, 2048
_TEXT, _ROUNDS, _PAIRS, _DECODE_TOKENS = 131072, 3, 1, 32


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@engine_options(context=False, defaults={"budget": _BUDGET, "reserve": _RESERVE, "gpu_layers": -1})
@click.option(
    "--rounds", type=click.IntRange(min=1), default=_ROUNDS, show_default=True,
    help="Evictions that are timed, behind one that warms up; medians are reported.",
)
@click.option(
    "--text", type=click.IntRange(0, CELLS_MAX), default=_TEXT, show_default=True, metavar="TOKENS",
    help="Length of the text that is read with the evicting cache and with a full one; 0 leaves that out.",
)
@click.option(
    "--pairs", type=click.IntRange(min=1), default=_PAIRS, show_default=True,
    help="Pairs of that comparison, evicting and full in turn.",
)
@click.option(
    "--decode-tokens", type=click.IntRange(min=1), default=_DECODE_TOKENS, show_default=True,
    help="Steps per measurement of decoding.",
)
@click.option(
    "--prefill-limit", type=click.IntRange(min=1), default=None, metavar="TOKENS",
    help="Read at most this much of the text with the evicting cache; the notes say so.",
)
@click.option(
    "--copy-bytes", type=click.IntRange(min=1), default=COPY_BYTES, show_default=True,
    help="Size of the copy inside the device's memory that is the yardstick.",
)
@json_option()
@click.pass_context
def device(ctx: click.Context, /, settings: EngineSettings, json_file: Path | None, **options: Any) -> None:
    """What evictions cost on the device that holds the cache.

    The time of an eviction, stage by stage, against the time in which the same device reads as many tokens as the
    reserve holds; its bytes per second against a copy inside that memory; and a long text with the evicting cache
    and with a full one. Models in the shape of real ones, without a download: restkv-bench shapes.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 150)
    wanted = DeviceSettings(**options)
    result = measure(settings, wanted, engine_class(ctx), lambda text: console.print(text, style="dim"))
    console.print(device_table(result))
    for note in result.get("text", {}).get("notes", ()):
        console.print(note, style="dim", markup=False)
    write_json(json_file, result)


def device_table(result: dict[str, Any]) -> Table:
    """What was measured, and what arithmetic or the target allows."""
    eviction, memory, text = result["eviction"], result["memory"], result.get("text")
    table = Table(title=f"{eviction['model']} on {result['on']} ({eviction['backend']})")
    for name in ("", "measured", "beside it"):
        table.add_column(name)
    cells = f"{eviction['cells_before']:,} to {eviction['cells_after']:,} cells"
    stages = ", ".join(f"{name} {_ms(eviction['stages'][name])}" for name in STAGES)
    table.add_row(f"eviction, {cells}", _ms(eviction["seconds"]), stages)
    table.add_row(
        "its bytes, each once", f"{eviction['bytes_per_s'] / 1e9:.1f} GB/s",
        f"a copy: {result['copy_bytes_per_s'] / 1e9:.1f} GB/s, at that speed {_ms(eviction['seconds_bound'])}",
    )  # fmt: skip
    table.add_row(
        f"part of reading {eviction['prefill_tokens']:,} tokens", f"{eviction['evict_share']:.2%}",
        f"target: at most {SHARE_MAX:.0%}; of the fastest reading {eviction['evict_share_of_first']:.2%}",
    )  # fmt: skip
    saved = "-" if memory["saved"] is None else f"{memory['saved']:.1%} less than a full cache of the text"
    target = f"{size(memory['stock_kv_bytes'])}; target: at least {SAVED_MIN:.0%}" if memory["stock_kv_bytes"] else "-"
    table.add_row("KV cache and what evicts it", f"{size(memory['evicting_bytes'])}, {saved}", target)
    if text:
        for name, key, form in (
            ("one token behind the text", "decode_ms", "{:.2f} ms"),
            ("first token of an answer", "first_token_seconds", "{:.2f} s"),
        ):
            stock, least = text[f"stock_{key}"], text[f"{key}_bound"]
            beside = "no full cache" if stock is None else f"full cache: {form.format(stock)}"
            table.add_row(name, form.format(text[key]), f"{beside}; arithmetic allows {form.format(least)}")
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
