"""What `restkv-bench needle` measures: how much of a pass key in a long text survives eviction.

A sentence with a five-digit key stands at several depths of a prose text; the question comes last. Measured is the
log-probability of the key after the stem of an answer, every token forced, against the full cache on the same prompts.
"""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from ..bench.origin import device, versions
from ..bench.prose import sentences
from ..config import EvictConfig
from ..engine.documents import Document, user_message
from ..engine.settings import EngineSettings
from ..errors import ConfigError
from .niah import NEEDLE, QUESTION, STEM
from .prompt import chat_tokens, shared_length
from .reading import Reader, answer_log_prob
from .stats import compare
from .variant import Variant

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
        (evict.method, evict.allocation, evict.prefill_used, f"budget {evict.budget}")
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
        "prefill": None if full else evict.prefill_used,
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
