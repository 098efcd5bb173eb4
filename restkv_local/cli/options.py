"""Options that the programs share. Their defaults and bounds are those of `restkv_local.config`."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..config import (
    ALLOCATIONS,
    ARCHIVE_TYPES,
    CELLS_MAX,
    DEFAULT_BUDGET,
    DEFAULT_CONTEXT,
    KV_TYPES,
    LLAMA_BOUNDS,
    METHODS,
    PLACES,
    PREFILLS,
    SEED_MAX,
    THREADS_MAX,
    EvictConfig,
    archive_place,
    parse_budget,
)
from ..engine.settings import EngineSettings
from ..errors import ConfigError
from ..plan.gpus import DEVICES_MAX
from ..sampling import SAMPLING, check_sampling

_UNITS = {"k": 1 << 10, "m": 1 << 20}
CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Budget(click.ParamType):  # type: ignore[type-arg]
    """Cells ("1024") or bytes ("512MB")."""

    name = "CELLS|SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if not isinstance(value, str):
            return int(value)
        try:
            return parse_budget(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class Utf8(click.ParamType):  # type: ignore[type-arg]
    """A text for the model. Names of files may be any bytes, a text may not."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            before = len(str(value)[: error.start].encode())
            self.fail(f"it is not UTF-8 text (byte {before}); convert it first, for example with iconv", param, ctx)
        return str(value)


class Temperature(click.FloatRange):
    """Temperatures of sampling."""

    def __init__(self) -> None:
        super().__init__(*SAMPLING["temperature"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        try:
            check_sampling({"temperature": number})  # a range takes what is no number
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return number


class KvType(click.ParamType):  # type: ignore[type-arg]
    """One type for K and V ("q8_0"), or two ("q8_0,q4_0")."""

    name = "TYPE[,TYPE]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | tuple[str, str]:
        parts = value if isinstance(value, tuple) else tuple(str(value).lower().split(","))
        if len(parts) > 2 or any(part not in KV_TYPES for part in parts):
            self.fail(f"'{value}' is not one of {', '.join(KV_TYPES)}, or two of them as q8_0,q4_0", param, ctx)
        return str(parts[0]) if len(parts) == 1 else (str(parts[0]), str(parts[1]))


class Archive(click.ParamType):  # type: ignore[type-arg]
    """Where an archive lies: a place ("ram"), or the path of its file."""

    name = "|".join([*PLACES, "PATH"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            archive_place(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class Contexts(click.ParamType):  # type: ignore[type-arg]
    """Lengths as "4096,16384"."""

    name = "N[,N...]"

    def __init__(self, at_least: int = 2) -> None:
        self.at_least = at_least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            lengths = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of lengths such as 4096,16384", param, ctx)
        if any(not self.at_least <= length <= CELLS_MAX for length in lengths):
            self.fail(f"every length must be from {self.at_least} to {CELLS_MAX}", param, ctx)
        return lengths


class Positions(click.IntRange):
    """A length in positions, also as 128k or 1M: 1024 and 1024 x 1024 of them."""

    def __init__(self) -> None:
        super().__init__(2, CELLS_MAX)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+)([km])", str(value).strip().lower())
        return int(super().convert(int(found[1]) * _UNITS[found[2]] if found else value, param, ctx))


class Shares(click.ParamType):  # type: ignore[type-arg]
    """Shares of several GPUs, as "3,1"."""

    name = "N[,N...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            shares = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of shares such as 3,1", param, ctx)
        if len(shares) > DEVICES_MAX or any(not 0 <= share < math.inf for share in shares) or sum(shares) <= 0:
            self.fail(f"shares must be at most {DEVICES_MAX} numbers from 0 up, one of them above 0", param, ctx)
        return shares


def settings_of(**chosen: Any) -> EngineSettings:
    """EngineSettings of these options; those that contradict each other are a mistake in the command line."""
    try:
        return EngineSettings(**chosen)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def json_option(text: str = "Write the figures here.") -> Callable[[Any], Any]:
    """--json FILE as `json_file`, whose folder must exist: a long run must not end without a place for its figures."""
    path = click.Path(dir_okay=False, path_type=Path)
    return click.option("--json", "json_file", type=path, callback=_in_a_folder, help=text)


def _in_a_folder(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not value.resolve().parent.is_dir():
        raise click.UsageError(f"--json: the folder of '{value}' does not exist")
    return value


def write_json(file: Path | None, result: dict[str, Any]) -> None:
    """Write figures to the file of --json; None: there is none."""
    if file is not None:
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        # Names of files may be no UTF-8; what this writes of them is JSON's own way to write such bytes.
        file.write_text(text, encoding="utf-8", errors="backslashreplace")


def engine_class(ctx: click.Context) -> Callable[..., Any]:
    """The engine to run: the one handed over as `obj={"engine": ...}`, else `restkv_local.engine.engine.Engine`."""
    if isinstance(ctx.obj, dict) and "engine" in ctx.obj:
        given: Callable[..., Any] = ctx.obj["engine"]
        return given
    from ..engine.engine import Engine

    return Engine


THREADS_OPTION = click.option(
    "-t", "--threads", type=click.IntRange(1, THREADS_MAX), default=None, help="CPU threads. Chosen when not given."
)
DEVICE_OPTIONS = (
    click.option(
        "--gpu-layers", type=click.IntRange(*LLAMA_BOUNDS["n_gpu_layers"]), default=0, show_default=True,
        help="Layers that run on the GPU; -1: all that fit.",
    ),
    click.option(
        "--main-gpu", type=click.IntRange(0, DEVICES_MAX - 1), default=None,
        help="Number of the one GPU to use, of several.",
    ),
    click.option("--tensor-split", type=Shares(), default=None, help="Shares of several GPUs, as 3,1."),
)
_CONTEXT = click.option(
    "-c", "--context", type=Positions(), default=DEFAULT_CONTEXT, show_default=True, metavar="POSITIONS",
    help="Longest text, in positions (tokens), also as 128k.",
)
_PREFILL = click.option(
    "--prefill", type=click.Choice(PREFILLS), default=None,
    help="How a text longer than the cache is read: scored by its own chunks (stream), by the question (guided), "
    "read whole in a full cache and cut once (exact), or with an archive, from which each chunk recalls (recall).",
)
_SHARED = (
    click.option(
        "-m", "--model", metavar="FILE", default=None, help="A GGUF model. Without it the embedded one answers."
    ),
    click.option(
        "--budget", type=Budget(), default=DEFAULT_BUDGET, show_default=True,
        help="What survives an eviction, in cells; or the bytes of the whole KV cache, as 512MB.",
    ),
    click.option(
        "--reserve", type=click.IntRange(1, CELLS_MAX), default=None, metavar="CELLS",
        help="Free cells above the budget. Chosen when not given.",
    ),
    click.option(
        "--method", type=click.Choice(METHODS), default=EvictConfig.method, show_default=True, metavar="NAME",
        help=f"How cells are scored: {', '.join(METHODS)} (an ordinary cache that never evicts).",
    ),
    click.option(
        "--allocation", type=click.Choice(ALLOCATIONS), default=EvictConfig.allocation, show_default=True,
        help="How the budget is shared out: alike, as a pyramid over the layers, or over the heads by their scores.",
    ),
    click.option(
        "--kv-type", type=KvType(), default=KV_TYPES[0], show_default=True,
        help=f"Type of the cache: {', '.join(KV_TYPES)}; two of them for K and V.",
    ),
    click.option(
        "--archive", type=Archive(), metavar=Archive.name, default="none", show_default=True,
        help="Where evicted rows are kept, so that questions find them again: in memory (ram), in a file of the "
        "temporary folder (file), or in the file PATH. It goes when the program ends.",
    ),
    click.option(
        "--archive-type", type=click.Choice(ARCHIVE_TYPES), default=EvictConfig.archive_type, show_default=True,
        help="How the archive keeps them; auto: as the cache does.",
    ),
    click.option(
        "--recall-every", type=click.IntRange(0, CELLS_MAX), default=EvictConfig.recall_every, show_default=True,
        metavar="N", help="With an archive: every N-th token of an answer recalls too; 0: none.",
    ),
    click.option(
        "--recall-below", type=click.FloatRange(0, 1, max_open=True), default=EvictConfig.recall_below,
        show_default=True, metavar="X",
        help="With an archive: a layer recalls in an answer when the cosine of its query to the last one that did is "
        "below X; 0: never.",
    ),
    THREADS_OPTION,
    *DEVICE_OPTIONS,
    click.option(
        "--seed", type=click.IntRange(0, SEED_MAX), default=None,
        help="Seed of sampling and of method random, for answers that repeat.",
    ),
    click.option("--unverified", is_flag=True, help="Evict a model family that was not checked against the reference."),
)


def device_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add DEVICE_OPTIONS, as `gpu_layers`, `main_gpu` and `tensor_split`."""
    for option in reversed(DEVICE_OPTIONS):
        function = option(function)
    return function


def engine_options(
    *, context: bool = True, defaults: dict[str, Any] | None = None, shown: dict[str, str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the shared options; the function gets them as one `settings` argument. context False: the command has its
    own option for lengths and no choice of the prefill. defaults: of a command that has its own for some options.
    shown: what its help says of the default of options that it chooses by itself."""
    options = (_CONTEXT, _PREFILL, *_SHARED) if context else _SHARED

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def collected(*args: Any, **values: Any) -> Any:
            names = EngineSettings.__dataclass_fields__
            chosen = {name: values.pop(name) for name in list(values) if name in names}
            if not context:
                chosen |= {"context": DEFAULT_CONTEXT, "prefill": None}
            return function(*args, settings=settings_of(**chosen), **values)

        wrapped: Callable[..., Any] = collected
        for option in reversed(options):
            wrapped = option(wrapped)
        for param in getattr(wrapped, "__click_params__", ()):
            if param.name in (defaults or {}):
                param.default, param.show_default = (defaults or {})[param.name], True
            if param.name in (shown or {}):
                param.show_default = (shown or {})[param.name]
        return wrapped

    return decorate
