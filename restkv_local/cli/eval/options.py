"""Options that every sub-command of restkv-eval has."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ...config import (
    CELLS_MAX,
    EVAL_BUDGETS,
    EVAL_CONTEXTS,
    EVAL_RESERVE,
    KV_TYPES,
    METHODS,
    PREFILLS,
    SEED_MAX,
    parse_budget,
)
from ...eval.grid import Grid
from ...eval.variant import ALL, parse_variants
from ..options import DEVICE_OPTIONS, THREADS_OPTION, KvType

CONVENTION = (
    "One set of cells per KV head: a budget B per query head, as papers count it, equals group x B cells here."
)


class Listed(click.ParamType):  # type: ignore[type-arg]
    """Values as "a,b", each once. parse: of one value; raises ValueError with a sentence."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = f"{name}[,{name}...]"
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(dict.fromkeys(self._parse(part.strip()) for part in str(value).split(",")))
        except ValueError as error:  # ConfigError is one
            self.fail(str(error), param, ctx)


def number(low: int, high: int) -> Callable[[str], int]:
    """Parses whole numbers from low to high."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"'{text}' is not a whole number from {low} to {high}")
        return int(text)

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    """Parses one of a fixed list."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"'{text}' is not one of {', '.join(allowed)}")
        return text

    return parse


def _methods(text: str) -> str:
    parse_variants([text])
    return text


def _pass(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _shown(values: tuple[Any, ...]) -> str:
    return ",".join(map(str, values))


def grid_options(
    *,
    contexts: tuple[int, ...] = EVAL_CONTEXTS,
    prefills: tuple[str, ...],
    samples: int,
    cell: str,
    methods: tuple[str, ...] = (ALL,),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the shared options; the function gets them as `grid`, `out`, `resume` and `as_json`.

    contexts, prefills, samples, methods: the sub-command's defaults; cell: what --samples counts by, for its help.
    Without prefills there is no option for them, and the grid has none: the sub-command has its own ways to read.
    """
    options = (
        click.option("--model", metavar="FILE", default=None, help="A GGUF model. Without it the embedded one reads."),
        click.option(
            "--methods", type=Listed("METHOD", _methods), default=methods, show_default=_shown(methods),
            help=f"How cells are scored: {ALL}, or some of {', '.join(METHODS)}; with settings as "
            "restkv:kernel=5:pooling=avgpool. The full cache always runs, as the yardstick.",
        ),
        click.option(
            "--budgets", type=Listed("BUDGET", parse_budget), default=EVAL_BUDGETS, show_default=_shown(EVAL_BUDGETS),
            help="What survives an eviction, in cells per KV head; or the bytes of the whole KV cache, as 512MB.",
        ),
        click.option(
            "--prefill", "prefills", type=Listed("MODE", choice(*PREFILLS)), default=prefills,
            show_default=_shown(prefills), help=f"How texts are read: some of {', '.join(PREFILLS)}.",
        ) if prefills else _pass,
        click.option(
            "--contexts", type=Listed("TOKENS", number(2, CELLS_MAX)), default=contexts, show_default=_shown(contexts),
            help="Lengths of the texts.",
        ),
        click.option(
            "--seeds", type=Listed("SEED", number(0, SEED_MAX)), default=(0,), show_default="0",
            help="Each gives other samples (and other numbers to method random).",
        ),
        click.option(
            "--samples", type=click.IntRange(min=1), default=samples, show_default=True,
            help=f"How many per seed, for each {cell}.",
        ),
        click.option(
            "--reserve", type=click.IntRange(1, CELLS_MAX), default=EVAL_RESERVE, show_default=True, metavar="CELLS",
            help="Free cells above the budget; part of the memory.",
        ),
        click.option(
            "--kv-type", type=KvType(), default=KV_TYPES[0], show_default=True,
            help=f"Type of the cache: {', '.join(KV_TYPES)}; two of them for K and V.",
        ),
        THREADS_OPTION,
        *DEVICE_OPTIONS,
        click.option("--unverified", is_flag=True, help="Evict a family that was not checked against the reference."),
        click.option(
            "--out", type=click.Path(file_okay=False, path_type=Path), default=None, metavar="DIR",
            help="Where results go, one line each; must be empty, unless --resume. Named by task and time otherwise.",
        ),
        click.option("--resume", is_flag=True, help="Go on in --out: what is there is not measured again."),
        click.option("--json", "as_json", is_flag=True, help="Print a summary as one JSON object on standard output."),
    )  # fmt: skip

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        @click.pass_context
        def collected(ctx: click.Context, /, out: Path | None, **values: Any) -> Any:
            chosen = {name: values.pop(name) for name in list(values) if name in Grid.__dataclass_fields__}
            chosen.setdefault("prefills", ())
            grid = Grid(variants=parse_variants(values.pop("methods")), **chosen)
            grid.split()  # refuses what cannot be, before anything is loaded or written; so does the next
            for seed in grid.seeds:
                grid.settings(seed)
            if out is None:
                if values["resume"]:
                    raise click.UsageError("--resume goes on in a folder; name it with --out DIR")
                now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
                out = Path(f"restkv-eval-{ctx.info_name}-{now}")
            return function(ctx, grid=grid, out=out, **values)

        wrapped: Callable[..., Any] = collected
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def texts(*allowed: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options --text and --kinds of a sub-command that reads on in texts: files, kinds. Kinds are those that were
    named; without any, and without a file, all of them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @click.option(
            "--text", "files", multiple=True, metavar="FILE",
            help="A UTF-8 text to read on in. Repeatable. Built-in kinds are read too if --kinds names them.",
        )
        @click.option(
            "--kinds", type=Listed("KIND", choice(*allowed)), default=None, show_default=_shown(allowed),
            help="Which of the built-in texts to measure.",
        )
        @functools.wraps(function)
        def wrapped(*args: Any, files: tuple[str, ...], kinds: tuple[str, ...] | None, **rest: Any) -> Any:
            chosen = (() if files else allowed) if kinds is None else kinds
            return function(*args, files=files, kinds=chosen, **rest)

        return wrapped

    return decorate
