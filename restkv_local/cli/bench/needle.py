"""`restkv-bench needle`: how much of a pass key in a long text survives eviction."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ...config import ALLOCATIONS, CELLS_MAX, KV_TYPES, METHODS, PREFILLS, SEED_MAX, EvictConfig
from ...eval.needle import COLUMNS, NeedleSettings, measure, table_row
from ..failure import Command
from ..options import (
    CONTEXT_SETTINGS,
    THREADS_OPTION,
    Budget,
    KvType,
    device_options,
    engine_class,
    json_option,
    settings_of,
    write_json,
)


class Names(click.ParamType):  # type: ignore[type-arg]
    """Some of a fixed list, as "restkv,snapkv"."""

    name = "NAME[,NAME...]"

    def __init__(self, allowed: Sequence[str]) -> None:
        self.allowed = tuple(allowed)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        parts = value if isinstance(value, tuple) else tuple(str(value).split(","))
        for part in parts:
            if part not in self.allowed:
                self.fail(f"'{part}' is not one of {', '.join(self.allowed)}", param, ctx)
        return parts


def _once(ctx: click.Context, param: click.Parameter, value: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """An option given several times: each name once, in the order given."""
    return tuple(dict.fromkeys(name for names in value for name in names))


def needle_table(result: dict[str, Any]) -> Table:
    """One row per combination; natural log-probabilities of the whole key."""
    settings = result["settings"]
    where = f"{settings['context']:,} tokens, {settings['depths']} depths"
    table = Table(title=f"{settings['model']}: a pass key in {where}")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("method", "prefill") else "right")
    for row in result["rows"]:
        table.add_row(*table_row(row))
    return table


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.option("--model", metavar="FILE", default=None, help="A GGUF model. Without it the embedded one reads.")
@click.option(
    "--context", type=click.IntRange(2, CELLS_MAX), default=6144, show_default=True, metavar="TOKENS",
    help="Length of a prompt with its answer.",
)
@click.option(
    "--budget", "budgets", type=Budget(), multiple=True, default=(512,), show_default=True,
    help="What survives an eviction, in cells; or the bytes of the whole KV cache, as 512MB. Repeatable.",
)
@click.option(
    "--reserve", "reserves", type=click.IntRange(1, CELLS_MAX), multiple=True, metavar="CELLS",
    help="Free cells above the budget. Chosen when not given. Repeatable.",
)
@click.option(
    "--depths", type=click.IntRange(min=1), default=10, show_default=True,
    help="Places of the key: the middles of so many equal parts of the text.",
)
@click.option(
    "--methods", type=Names([method for method in METHODS if method != "full"]), multiple=True, callback=_once,
    default=(EvictConfig.method,), show_default=True,
    help="How cells are scored; several as restkv,snapkv. The full cache is always measured.",
)
@click.option(
    "--allocations", type=Names(ALLOCATIONS), multiple=True, callback=_once, default=(EvictConfig.allocation,),
    show_default=True, help="How layers and KV heads share the budget; several as uniform,ada.",
)
@click.option(
    "--prefill", "prefills", type=Names(PREFILLS), multiple=True, callback=_once,
    default=("stream", "guided"), show_default=True,
    help="How the prompt is read; guided by the question.",
)
@click.option(
    "--kv-type", type=KvType(), default=KV_TYPES[0], show_default=True,
    help=f"Type of the cache: {', '.join(KV_TYPES)}; two of them for K and V.",
)
@THREADS_OPTION
@device_options
@click.option(
    "--seed", type=click.IntRange(0, SEED_MAX), default=0, show_default=True,
    help="Seed of the text, of the keys and of method random.",
)
@click.option("--unverified", is_flag=True, help="Evict a model family that was not checked against the reference.")
@json_option()
@click.pass_context
def needle(ctx: click.Context, /, json_file: Path | None, **options: Any) -> None:
    """How much of a pass key in a long text survives eviction.

    A key stands at several depths of a text, and a question for it follows. The figure is the log-probability of the
    key as the answer, against the full cache on the same prompts.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 150)
    options["reserves"] = options["reserves"] or (None,)
    chosen = NeedleSettings(**{name: options.pop(name) for name in NeedleSettings.__dataclass_fields__})
    common: dict[str, Any] = {"context": chosen.context, "seed": chosen.seed, "budget": chosen.budgets[0]}
    settings = settings_of(**options, **common, reserve=None, method=EvictConfig.method, prefill=None)
    result: dict[str, Any] = {}
    for result in measure(settings, chosen, engine_class(ctx), lambda text: console.print(text, style="dim")):
        write_json(json_file, result)
    console.print(needle_table(result))
