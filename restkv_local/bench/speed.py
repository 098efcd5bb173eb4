"""What `restkv-bench speed` measures."""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..config import CELL_PAD
from ..engine.settings import EngineSettings
from ..errors import RestkvError
from ..plan.machine import free_memory, size
from .origin import device, versions
from .process import peak_rss_bytes, python_program
from .prose import prose_tokens
from .stock import StockCache, synchronize

STOCK_PREFILLS = ("auto", "sampled", "full")
STOCK_FILLS = ("synthetic", "real")
# Up to here the stock prefill is read whole when nothing else is asked.
FULL_MAX = 16384
# Batches that a sampled stock prefill reads, spread evenly over the text.
_SAMPLES = 5
_WARM_UP = 64
# Text that fits the cells: read by both sides in turn, the best of each counts.
_FIRST = 1024
_FIRST_TIMES = 3

Engine = Any
Say = Callable[[str], None]


@dataclass(frozen=True)
class SpeedSettings:
    """contexts: text lengths in tokens; decode_tokens: steps per measurement; pairs: repetitions of A B."""

    contexts: tuple[int, ...]
    decode_tokens: int
    pairs: int
    prefill_limit: int | None
    stock_prefill: str
    stock_fill: str


@dataclass
class _Pair:
    """Figures of one pair. Times in milliseconds per token and tokens per second."""

    decode_ms: float
    prefill_tokens_per_s: float
    evict_share: float
    stock_decode_ms: float | None = None
    stock_prefill_tokens_per_s: float | None = None
    capture_ratio: float | None = None

    def figures(self) -> dict[str, float | None]:
        """All figures with the ratios; above 1 the evicting cache is faster.

        capture_ratio: on text that fits the cells, where the only difference is that queries are kept.
        """
        stock_ms, stock_speed = self.stock_decode_ms, self.stock_prefill_tokens_per_s
        return {
            **asdict(self),
            "decode_ratio": None if stock_ms is None else stock_ms / self.decode_ms,
            "prefill_ratio": None if stock_speed is None else self.prefill_tokens_per_s / stock_speed,
        }


def measure(
    settings: EngineSettings, speed: SpeedSettings, engine_class: Callable[..., Any], say: Say
) -> dict[str, Any]:
    """Rows per context, with the device, versions, settings and date. `say` gets a line per step."""
    rows = [_row(settings, speed, context, engine_class, say) for context in speed.contexts]
    return {
        "rows": rows,
        "device": device(),
        "versions": versions(),
        "settings": {**asdict(settings), **asdict(speed), **_common(rows)},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def measure_peak(settings: EngineSettings, n_tokens: int, engine_class: Callable[..., Any]) -> dict[str, Any]:
    """Read `n_tokens` tokens in this process; its peak resident memory in bytes."""
    engine = settings.load(engine_class, evict=settings.evict(), n_ctx=settings.context)
    engine.eval(prose_tokens(n_tokens, engine.tokenize))
    engine.close()
    return {"peak_rss_bytes": peak_rss_bytes(), "tokens": n_tokens}


def _row(
    settings: EngineSettings, speed: SpeedSettings, context: int, engine_class: Callable[..., Any], say: Say
) -> dict[str, Any]:
    notes: list[str] = []
    limit = context if speed.prefill_limit is None else min(context, speed.prefill_limit)
    if limit < context:
        notes.append(f"the evicting cache read {limit:,} of {context:,} tokens (--prefill-limit)")
    n_ctx = padded(context + 2 * speed.decode_tokens + _WARM_UP)
    say(f"{context:,} tokens: peak memory, in a process of its own")
    peak = peak_of_child(settings, n_ctx, limit)
    evicted: list[float] = []
    engine = settings.load(
        engine_class, evict=settings.evict(), n_ctx=n_ctx, on_evict=lambda event: evicted.append(event.seconds)
    )
    stock = None
    try:
        tokens = prose_tokens(n_ctx, engine.tokenize)
        report = engine.report()
        if report.archive is not None:
            where = "in memory" if report.archive.place == "ram" else "in a file"
            notes.append(f"read by {report.prefill}, with an archive {where}")
        row: dict[str, Any] = {
            "context": context,
            "model": report.model,
            "backend": report.backend,
            "n_threads": engine.n_threads,
            "n_threads_batch": engine.n_threads_batch,
            "n_batch": engine.n_batch,
            "budget": report.budget,
            "capacity": report.capacity,
            "kv_bytes": report.kv_bytes,
        }
        stock = _stock(engine, n_ctx, report, notes)
        sampled = speed.stock_prefill == "sampled" or (speed.stock_prefill == "auto" and context > FULL_MAX)
        fill = "real" if not sampled else speed.stock_fill
        if stock is not None and sampled:
            notes.append(
                f"stock prefill: {len(sample_starts(context, stock.n_batch))} batches of {stock.n_batch} real tokens "
                "read at even depths, times integrated"
            )
        pairs = []
        for number in range(speed.pairs):
            say(f"{context:,} tokens: pair {number + 1} of {speed.pairs}")
            pairs.append(_pair(engine, stock, tokens, context, limit, speed, sampled, fill, evicted))
        row |= summary([pair.figures() for pair in pairs])
        row |= {name: peak["peak_rss_bytes"] for name in ("peak_rss_bytes", "peak_rss_bytes_min", "peak_rss_bytes_max")}
        row |= {
            "evictions": engine.report().n_evictions,
            "stock_fill": None if stock is None else fill,
            "stock_prefill": None if stock is None else "sampled" if sampled else "full",
            "notes": notes,
        }
        return row
    finally:
        if stock is not None:
            stock.close()
        engine.close()


def _pair(
    engine: Engine,
    stock: StockCache | None,
    tokens: Sequence[int],
    context: int,
    limit: int,
    speed: SpeedSettings,
    sampled: bool,
    fill: str,
    evicted: list[float],
) -> _Pair:
    """Evicting then stock: the prefill of both, then the decode of both."""
    n = speed.decode_tokens
    engine.reset()
    engine.eval(tokens[:_WARM_UP])
    engine.reset()
    first = tokens[: min(_FIRST, engine.report().capacity)]
    capture_ratio = None if stock is None else _capture_ratio(engine, stock, first)
    evicted.clear()
    start = time.perf_counter()
    engine.eval(tokens[:limit])
    synchronize(engine)
    seconds = time.perf_counter() - start
    share = sum(evicted) / seconds
    eviction = statistics.fmean(evicted) if evicted else 0.0
    stock_seconds = None
    if stock is not None:
        stock.clear()
        stock.read(tokens[:_WARM_UP])
        stock.clear()
        if sampled:
            stock_seconds = _sampled_prefill(stock, tokens, context, fill)
        else:
            stock_seconds = stock.read(tokens[:context])
    answer = tokens[context : context + n]
    evicted.clear()
    start = time.perf_counter()
    for token in answer:
        engine.eval([token])
        synchronize(engine)
    seconds_decode = time.perf_counter() - start
    # An answer evicts once in as many tokens as the reserve holds, whether or not one falls into these steps.
    decode_ms = ((seconds_decode - sum(evicted)) / n + eviction / max(1, engine.report().reserve)) * 1000
    pair = _Pair(decode_ms, limit / seconds, share, capture_ratio=capture_ratio)
    if stock is not None and stock_seconds is not None:
        pair.stock_decode_ms = stock.read_one_by_one(answer) / n * 1000
        pair.stock_prefill_tokens_per_s = context / stock_seconds
    return pair


def _capture_ratio(engine: Engine, stock: StockCache, tokens: Sequence[int]) -> float:
    """How fast the engine reads a text that fits its cells, against the stock cache; both are empty afterwards."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(_FIRST_TIMES):
        start = time.perf_counter()
        engine.eval(tokens)
        synchronize(engine)
        ours.append(time.perf_counter() - start)
        engine.reset()
        stock.clear()
        theirs.append(stock.read(tokens))
        stock.clear()
    return min(theirs) / min(ours)


def _sampled_prefill(stock: StockCache, tokens: Sequence[int], context: int, fill: str) -> float:
    """Seconds that a prefill of `context` tokens takes, from one batch at each depth; leaves the cache full.

    A batch at depth n costs a constant and a part that grows with n; the trapezoidal rule is exact for that.
    """
    n_batch = stock.n_batch
    starts = sample_starts(context, n_batch)
    if len(starts) < 2:
        return stock.read(tokens[:context])
    per_token: list[float] = []
    for first in starts:
        if fill == "synthetic":
            stock.fill(first, tokens)
        else:
            stock.read(tokens[stock.n_tokens : first])
        per_token.append(stock.read(tokens[first : first + n_batch]) / n_batch)
    return mean_over(starts, per_token) * context


def sample_starts(context: int, n_batch: int) -> list[int]:
    """First tokens of batches that do not overlap, the first at 0 and the last at the end of the text."""
    n = min(_SAMPLES, context // n_batch)
    return [round((context - n_batch) * i / (n - 1)) for i in range(n)] if n > 1 else [0]


def mean_over(places: Sequence[int], values: Sequence[float]) -> float:
    """Mean of a curve through these points, by the trapezoidal rule."""
    points = list(zip(places, values, strict=True))
    area = sum((right - left) * (a + b) / 2 for (left, a), (right, b) in zip(points, points[1:], strict=False))
    return area / (places[-1] - places[0])


def _stock(engine: Engine, n_ctx: int, report: Any, notes: list[str]) -> StockCache | None:
    """The full cache beside the engine; None, with a note, when memory does not hold it."""
    needed = report.kv_bytes // report.capacity * n_ctx
    available = free_memory()
    if available is not None and needed > available:
        notes.append(f"no stock figures: its cache needs {size(needed)}, {size(available)} are free")
        return None
    params = engine.context_params
    return StockCache(
        engine.model, n_ctx,
        n_batch=engine.n_batch, n_threads=engine.n_threads, n_threads_batch=engine.n_threads_batch,
        type_k=params.type_k, type_v=params.type_v,
    )


def peak_of_child(
    settings: EngineSettings, n_ctx: int, n_tokens: int, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `_peak` in a fresh process, as this one holds the stock cache too. environment: on top of this one's."""
    arguments = [
        *python_program("restkv_local.cli.bench.main"), "_peak",
        "--tokens", str(n_tokens), "--context", str(n_ctx), *settings.arguments(),
    ]
    env = os.environ | dict(environment or {})
    child = subprocess.run(arguments, capture_output=True, text=True, env=env, check=False)
    if child.returncode:
        reason = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise RestkvError(f"the memory measurement failed: {reason[0]}")
    result: dict[str, Any] = json.loads(child.stdout.strip().splitlines()[-1])
    return result


def summary(pairs: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Per figure the median of the pairs, with `_min` and `_max`."""
    row: dict[str, float | None] = {}
    for name in pairs[0]:
        values = [value for pair in pairs if (value := pair[name]) is not None]
        row[name] = statistics.median(values) if values else None
        row[f"{name}_min"] = min(values) if values else None
        row[f"{name}_max"] = max(values) if values else None
    return row


def padded(n: int) -> int:
    """Positions of a context for n tokens."""
    return (n + CELL_PAD - 1) // CELL_PAD * CELL_PAD


def _common(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is the same in every row."""
    names = ("model", "backend", "n_threads", "n_threads_batch", "n_batch", "budget", "capacity")
    return {name: rows[0][name] for name in names} if rows else {}
