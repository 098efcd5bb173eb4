"""`restkv-bench needle`: how much of a pass key in a long text survives eviction.

A sentence with a five-digit key stands at several depths of a prose text; the question comes last. Measured is the
log-probability of the key after the stem of an answer, every token forced, against the full cache on the same prompts.
"""

from __future__ import annotations

import datetime
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from ..config import CELLS_MAX, KV_TYPES, METHODS, PREFILLS, EvictConfig
from ..errors import ConfigError, RestkvError
from .documents import Document, user_message
from .failure import Command
from .options import CONTEXT_SETTINGS, SEED_MAX, Budget, EngineSettings, KvType, engine_class
from .speed import device, versions
from .text import sentences

# The sentence of the pass key task of Mohtashami and Jaggi (2023), in prose of our own.
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key?"
# The answer begins with it, so that only the key is measured, and not the style of an answer (a small model in a long
# text gives 7 nats to whether a number follows, and 1 to which).
STEM = "The pass key is "

Engine = Any
Say = Callable[[str], None]


@dataclass(frozen=True)
class NeedleSettings:
    """context: tokens of a prompt with its answer; depths: how many; budgets, methods, prefills: all combinations."""

    context: int
    depths: int
    budgets: tuple[int | str, ...]
    methods: tuple[str, ...]
    prefills: tuple[str, ...]
    seed: int


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
    """The row of the full cache and one per method, prefill and budget; with device, versions, settings and date.

    Yields the result so far after each row, so that a run that is stopped leaves what it measured.
    A row's log-probabilities are natural ones of the whole key, one per depth. `make` is the class of the engine.
    """
    plans = [settings.evict(method="full")] + [
        settings.evict(method=method, prefill=prefill, budget=budget)
        for budget in needle.budgets
        for method in needle.methods
        for prefill in needle.prefills
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
    name = "full cache" if full else f"{evict.method}, {evict.prefill}, budget {evict.budget}"
    engine.guide = QUESTION
    reader = Reader(engine)
    log_probs: list[float] = []
    start = time.perf_counter()
    for number, case in enumerate(cases):
        following = cases[number + 1].prompt if number + 1 < len(cases) else []
        reader.read(case.prompt, shared=_shared(case.prompt, following))
        log_probs.append(answer_log_prob(engine, case.answer))
        say(f"{name}: depth {case.depth:.0%}, log-probability {log_probs[-1]:.3f}")
    report = engine.report()
    return {
        "method": evict.method,
        "prefill": None if full else evict.prefill,
        "budget": report.budget,
        "capacity": report.capacity,
        "backend": report.backend,
        "evictions": report.n_evictions,
        "seconds": time.perf_counter() - start,
        "log_probs": log_probs,
    }


def compare(log_probs: Sequence[float], full: Sequence[float] | None) -> dict[str, float | None]:
    """The mean, and its difference to the full cache's with a 95 % interval over the depths (paired, Student's t)."""
    row: dict[str, float | None] = {"mean": statistics.fmean(log_probs)}
    if full is None:
        return row | {"difference": None, "difference_min": None, "difference_max": None}
    differences = [ours - theirs for ours, theirs in zip(log_probs, full, strict=True)]
    mean = statistics.fmean(differences)
    half = None
    if len(differences) > 1:
        half = _student(len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return row | {"difference": mean, "difference_min": low, "difference_max": high}


def _student(freedom: int) -> float:
    """97.5 % point of Student's t: exact for 1 and 2, else the expansion of Cornish and Fisher (Abramowitz and
    Stegun 26.7.5), within 0.01 from 3 degrees of freedom on."""
    if freedom < 3:
        return (12.7062, 4.3027)[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** (i + 1) for i, term in enumerate(terms))


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
    n = _shared(stem, answer)  # a tokenizer may join the end of the stem with the key
    return Case(depth, key, prompt + answer[:n], answer[n:])


def chat_tokens(engine: Engine, content: str) -> list[int]:
    """Tokens of a chat with one user message, up to where the answer begins, in the engine's own chat format."""
    handler = engine.chat_handler or engine._chat_handlers.get(engine.chat_format)
    if handler is None:
        from llama_cpp.llama_chat_format import get_chat_completion_handler

        handler = get_chat_completion_handler(engine.chat_format)
    try:
        handler(llama=_Listener(engine), messages=[{"role": "user", "content": content}])
    except _Prompt as prompt:
        return prompt.tokens
    raise RestkvError(f"the chat format '{engine.chat_format}' renders no prompt; choose a model with a chat template")


class _Prompt(Exception):
    """Ends a chat handler when the prompt is there."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens


class _Listener:
    """Stands for an engine in a chat handler, which has no other way to say what it would complete."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def create_completion(self, prompt: list[int], **options: Any) -> None:
        raise _Prompt(list(prompt))


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


# ---- reading -----------------------------------------------------------------------------------


class Reader:
    """Reads prompts that share their beginnings. The state is saved between two chunks of a prompt, where the next one
    would pass as well, so each prompt is read exactly as if it were the first: same chunks, same evictions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._state: Any = None

    def read(self, prompt: Sequence[int], shared: int) -> None:
        """Read a prompt; its first `shared` tokens also begin the next one."""
        engine = self._engine
        if self._state is None:
            engine.reset()
        else:
            engine.load_state(self._state)

        def keep(done: int, total: int) -> None:
            if shared - engine.n_batch < engine.n_tokens <= shared and done:
                self._state = engine.save_state()

        engine.on_progress = keep
        try:
            engine.eval(prompt[engine.n_tokens :])
        finally:
            engine.on_progress = None


def answer_log_prob(engine: Engine, answer: Sequence[int]) -> float:
    """Natural log-probability of the tokens `answer` after what the engine has read, each one forced."""
    total = 0.0
    for i, token in enumerate(answer):
        if i:
            engine.eval([answer[i - 1]])
        logits = np.asarray(engine.scores[engine.n_tokens - 1], dtype=np.float64)
        top = logits.max()
        total += float(logits[token] - top - np.log(np.exp(logits - top).sum()))
    return total


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
    """One row per method, prefill and budget; natural log-probabilities of the whole key."""
    settings = result["settings"]
    where = f"{settings['context']:,} tokens, {settings['depths']} depths"
    table = Table(title=f"{settings['model']}: a pass key in {where}")
    for name in ("method", "prefill", "budget", "evictions", "mean", "lowest", "to the full cache", "95 % interval"):
        table.add_column(name, justify="left" if name in ("method", "prefill") else "right")
    for row in result["rows"]:
        low, high = row["difference_min"], row["difference_max"]
        table.add_row(
            row["method"],
            row["prefill"] or "-",
            "-" if row["prefill"] is None else f"{row['budget']:,}",
            f"{row['evictions']:,}",
            f"{row['mean']:.2f}",
            f"{min(row['log_probs']):.2f}",
            "-" if row["difference"] is None else f"{row['difference']:+.2f}",
            "-" if low is None else f"{low:+.2f} to {high:+.2f}",
        )
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
    "--reserve", type=click.IntRange(1, CELLS_MAX), default=None, metavar="CELLS",
    help="Free cells above the budget. Chosen when not given.",
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
    "--prefill", "prefills", type=Names(PREFILLS), multiple=True, callback=_once,
    default=("stream", "guided"), show_default=True,
    help="How the prompt is read; guided by the question.",
)
@click.option(
    "--kv-type", type=KvType(), default=KV_TYPES[0], show_default=True,
    help=f"Type of the cache: {', '.join(KV_TYPES)}; two of them for K and V.",
)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads. Chosen when not given.")
@click.option("--gpu-layers", type=click.IntRange(min=-1), default=0, show_default=True, help="On the GPU; -1: all.")
@click.option(
    "--seed", type=click.IntRange(0, SEED_MAX), default=0, show_default=True,
    help="Seed of the text, of the keys and of method random.",
)
@click.option("--unverified", is_flag=True, help="Evict a model family that was not checked against the reference.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.pass_context
def needle(ctx: click.Context, /, json_file: Path | None, **options: Any) -> None:
    """How much of a pass key in a long text survives eviction.

    A key stands at several depths of a text, and a question for it follows. The figure is the log-probability of the
    key as the answer, against the full cache on the same prompts.
    """
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise click.UsageError(f"--json: the folder of '{json_file}' does not exist")
    from rich.console import Console

    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 150)
    chosen = NeedleSettings(**{name: options.pop(name) for name in NeedleSettings.__dataclass_fields__})
    common: dict[str, Any] = {"context": chosen.context, "seed": chosen.seed, "budget": chosen.budgets[0]}
    settings = EngineSettings(**options, **common, method=EvictConfig.method, prefill=None)
    result: dict[str, Any] = {}
    for result in measure(settings, chosen, engine_class(ctx), lambda text: console.print(text, style="dim")):
        if json_file is not None:
            json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console.print(needle_table(result))
