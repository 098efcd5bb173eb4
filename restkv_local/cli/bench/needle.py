"""`restkv-bench needle`: how much of a pass key in a long text survives eviction.

A sentence with a five-digit key stands at several depths of a prose text; the question comes last. Measured is the
log-probability of the key after the stem of an answer, every token forced, against the full cache on the same prompts.
"""

from __future__ import annotations

import datetime
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ...bench.prose import sentences
from ...config import ALLOCATIONS, CELLS_MAX, KV_TYPES, METHODS, PREFILLS, EvictConfig
from ...engine.documents import Document, user_message
from ...errors import ConfigError
from ...eval.niah import NEEDLE, QUESTION, STEM
from ...eval.origin import device, versions
from ...eval.prompt import chat_tokens, shared_length
from ...eval.reading import Reader, answer_log_prob
from ...eval.stats import compare
from ...eval.variant import Variant
from ..failure import Command
from ..options import (
    CONTEXT_SETTINGS,
    SEED_MAX,
    Budget,
    EngineSettings,
    KvType,
    device_options,
    engine_class,
    json_option,
    write_json,
)

Engine = Any
Say = Callable[[str], None]

COLUMNS = ("method", "prefill", "budget", "reserve", "mean", "lowest", "to the full cache", "95 % interval")


@dataclass(frozen=True)
class NeedleSettings:
    """context: tokens of a prompt with its answer; depths: how many; the lists: all combinations. A reserve of None is
    chosen."""

    context: int
    depths: int
    budgets: tuple[int | str, ...]
    methods: tuple[str, ...]
    prefills: tuple[str, ...]
    seed: int
    reserves: tuple[int | None, ...] = (None,)
    allocations: tuple[str, ...] = (EvictConfig.allocation,)


@dataclass(frozen=True)
class Case:
    """A prompt with the key at `depth` (0 to 1) of its text. prompt and answer are tokens."""

    depth: float
    key: str
    prompt: list[int]
    answer: list[int]


def measure(
    settings: EngineSettings, needle: NeedleSettings, make: Callable[..., Any], say: Say
) -> Iterator[dict[str, Any]]:
    """The row of the full cache and one per combination of the settings; with device, versions, settings and date.

    Yields the result so far after each row, so that a run that is stopped leaves what it measured.
    A row's log-probabilities are natural ones of the whole key, one per depth. `make` is the class of the engine.
    """
    plans = [settings.evict(method="full")] + [
        settings.evict(method=method, prefill=prefill, budget=budget, reserve=reserve, allocation=allocation)
        for budget in needle.budgets
        for method in needle.methods
        for allocation in needle.allocations
        for prefill in needle.prefills
        for reserve in needle.reserves
    ]
    rows: list[dict[str, Any]] = []
    cases: list[Case] = []
    common: dict[str, Any] = {}
    for evict in plans:
        engine = settings.load(make, evict=evict, n_ctx=needle.context)
        try:
            if not cases:
                cases = make_cases(engine, needle)
                common = _common(engine, cases)
            row = _row(engine, evict, cases, say)
        finally:
            engine.close()
        rows.append(row | compare(row["log_probs"], rows[0]["log_probs"] if rows else None))
        yield {
            "rows": list(rows),
            "device": device(),
            "versions": versions(),
            "settings": {**asdict(settings), **common, **asdict(needle), "evict": asdict(EvictConfig())},
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }


def _row(engine: Engine, evict: EvictConfig, cases: Sequence[Case], say: Say) -> dict[str, Any]:
    full = evict.method == "full"
    name = "full cache" if full else ", ".join(
        (evict.method, evict.allocation, evict.prefill, f"budget {evict.budget}")
    )
    if evict.reserve is not None and not full:
        name += f", reserve {evict.reserve}"
    engine.guide = QUESTION
    reader = Reader(engine)
    log_probs: list[float] = []
    start = time.perf_counter()
    for number, case in enumerate(cases):
        following = cases[number + 1].prompt if number + 1 < len(cases) else []
        reader.read(case.prompt, shared=shared_length(case.prompt, following))
        log_probs.append(answer_log_prob(engine, case.answer))
        say(f"{name}: depth {case.depth:.0%}, log-probability {log_probs[-1]:.3f}")
    report = engine.report()
    return {
        "method": evict.method,
        "allocation": None if full else evict.allocation,
        "prefill": None if full else evict.prefill,
        "budget": report.budget,
        "reserve": 0 if full else report.capacity - report.budget,
        "capacity": report.capacity,
        "backend": report.backend,
        "evictions": report.n_evictions,
        "seconds": time.perf_counter() - start,
        "log_probs": log_probs,
    }


def table_row(row: dict[str, Any]) -> tuple[str, ...]:
    """What the table says of a row, by COLUMNS. A method with another allocation goes by its variant's name."""
    low, high = row["difference_min"], row["difference_max"]
    changes = {} if row["allocation"] in (None, EvictConfig.allocation) else {"allocation": row["allocation"]}
    return (
        Variant(row["method"], changes).name,
        row["prefill"] or "-",
        *("-" if row["prefill"] is None else f"{row[name]:,}" for name in ("budget", "reserve")),
        f"{row['mean']:.2f}",
        f"{min(row['log_probs']):.2f}",
        "-" if row["difference"] is None else f"{row['difference']:+.2f}",
        "-" if low is None else f"{low:+.2f} to {high:+.2f}",
    )


# ---- prompts -----------------------------------------------------------------------------------


def make_cases(engine: Engine, needle: NeedleSettings) -> list[Case]:
    """Prompts of at most needle.context tokens with their answers, by depth. Raises ConfigError when it is too short.

    The text is cut into as many equal parts as there are depths and the key stands in the middle of each.
    """
    rng = random.Random(needle.seed)
    keys = [str(rng.randrange(10000, 100000)) for _ in range(needle.depths)]
    depths = [(i + 0.5) / needle.depths for i in range(needle.depths)]
    text = list(islice(sentences(needle.seed), needle.context))  # a sentence is more than a token

    def with_sentences(n: int) -> list[Case]:
        return [_case(engine, text[:n], depth, key) for depth, key in zip(depths, keys, strict=True)]

    def fits(cases: Iterable[Case]) -> bool:
        return all(len(case.prompt) + len(case.answer) <= needle.context for case in cases)

    low, high = needle.depths, needle.context
    if not fits(with_sentences(low)):
        raise ConfigError(f"{needle.context} tokens have no room for {needle.depths} depths; raise --context")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(with_sentences(middle)) else (low, middle)
    return with_sentences(low)


def _case(engine: Engine, text: Sequence[str], depth: float, key: str) -> Case:
    place = round(depth * len(text))
    body = " ".join([*text[:place], NEEDLE.format(key=key), *text[place:]])
    prompt = chat_tokens(engine, user_message([Document("text", body)], QUESTION))
    stem = engine.tokenize(STEM.encode(), add_bos=False, special=False)
    answer = engine.tokenize(f"{STEM}{key}".encode(), add_bos=False, special=False)
    n = shared_length(stem, answer)  # a tokenizer may join the end of the stem with the key
    return Case(depth, key, prompt + answer[:n], answer[n:])


def _common(engine: Engine, cases: Sequence[Case]) -> dict[str, Any]:
    """What is the same for every row."""
    return {
        "model": engine.report().model,
        "n_threads": engine.n_threads,
        "n_threads_batch": engine.n_threads_batch,
        "needle": NEEDLE,
        "question": QUESTION,
        "guide": QUESTION,
        "stem": STEM,
        "keys": [case.key for case in cases],
        "depth_fractions": [case.depth for case in cases],
        "prompt_tokens": [len(case.prompt) for case in cases],
        "answer_tokens": [len(case.answer) for case in cases],
    }


# ---- the command -------------------------------------------------------------------------------


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
@click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads. Chosen when not given.")
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
    settings = EngineSettings(**options, **common, reserve=None, method=EvictConfig.method, prefill=None)
    result: dict[str, Any] = {}
    for result in measure(settings, chosen, engine_class(ctx), lambda text: console.print(text, style="dim")):
        write_json(json_file, result)
    console.print(needle_table(result))
