"""What `restkv-bench device` measures: evictions where the cache lives, against what the same device needs to read."""

from __future__ import annotations

import ctypes
import datetime
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .. import native
from ..check.copying import copy_speed
from ..check.devices import Device, devices, find_device
from ..engine.settings import EngineSettings
from ..errors import RestkvError
from ..plan.machine import size
from .origin import device as machine
from .origin import versions
from .prose import prose_tokens
from .speed import SpeedSettings
from .speed import measure as measure_speed
from .stock import StockCache, synchronize

# What is asked of an eviction: its time, as a part of that of reading the tokens which made it necessary, and how much
# less memory than a full cache takes.
SHARE_MAX, SAVED_MIN = 0.05, 0.85
STAGES = ("attend", "score", "smooth", "select", "compact")

Engine = Any
Say = Callable[[str], None]


@dataclass(frozen=True)
class DeviceSettings:
    """rounds: evictions that count, behind one that warms up. text: tokens of the comparison with a full cache, 0 for
    none. copy_bytes: size of the copy that is the yardstick. The rest is that of `SpeedSettings`."""

    rounds: int
    text: int
    copy_bytes: int
    decode_tokens: int
    pairs: int
    prefill_limit: int | None


def measure(
    settings: EngineSettings, wanted: DeviceSettings, engine_class: Callable[..., Any], say: Say
) -> dict[str, Any]:
    """Evictions, memory, the comparison over a long text, and whether the targets are met; with machine, versions,
    settings and date. Seconds, bytes and bytes per second."""
    found_devices = devices()
    result: dict[str, Any] = {
        "device": machine(),
        "devices": [found.to_json() for found in found_devices],
        "versions": versions(),
        "settings": {**asdict(settings), **asdict(wanted)},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    say("loading the model")
    before = {found.name: found.memory_free for found in found_devices}
    events: list[Any] = []
    # Room for the rounds; the cache itself does not know how long the text is.
    n_ctx = _positions(settings, wanted.rounds)
    engine = settings.load(engine_class, evict=settings.evict(), n_ctx=n_ctx, on_evict=events.append)
    try:
        report = engine.report()
        # Its name alone: the file goes into reports, and a folder may name a person.
        result["settings"]["model"] = report.model
        where = place(report.backend, found_devices, settings.gpu_layers)
        result["on"] = where
        say(f"copying inside the memory of {where}")
        copy = copy_speed(where, wanted.copy_bytes)
        result["copy_bytes_per_s"] = copy
        result["eviction"] = evictions = _evictions(engine, events, wanted.rounds, copy, say)
        result["memory"] = memory = _memory(engine, where, before[where], wanted.text, say)
        weights = model_bytes(engine)
        cell = report.kv_bytes // report.capacity
        budget = report.budget
    finally:
        engine.close()
    targets = {"evict_share": target(evictions["evict_share"], most=SHARE_MAX)}
    if wanted.text:
        speed = SpeedSettings(
            contexts=(wanted.text,), decode_tokens=wanted.decode_tokens, pairs=wanted.pairs,
            prefill_limit=wanted.prefill_limit, stock_prefill="auto", stock_fill="synthetic",
        )  # fmt: skip
        row = measure_speed(settings, speed, engine_class, say)["rows"][0]
        result["text"] = row | bounds(row, weights, cell, budget, copy, evictions["first_tokens_per_s"])
        targets["saved"] = target(memory["saved"], least=SAVED_MIN)
    result["targets"] = targets
    return result


def place(backend: str, devices: Sequence[Device], gpu_layers: int) -> str:
    """The device whose memory the cells are in: the one that the report names, else the first GPU that layers were
    given to, else the CPU."""
    graph = re.search(r"graph \(([^)]*)\)", backend)
    named = graph[1].split(", ") if graph else []
    for found in devices:
        if found.name in named:
            return found.name
    first = [found.name for found in devices if found.kind in ("gpu", "igpu") and gpu_layers]
    return (first or [found.name for found in devices if found.kind == "cpu"])[0]


def target(value: float | None, *, most: float | None = None, least: float | None = None) -> dict[str, Any]:
    """A figure, what is asked of it, and whether it is met; None when the figure is missing."""
    met = None
    if value is not None:
        met = (most is None or value <= most) and (least is None or value >= least)
    return {"value": value, "most": most, "least": least, "met": met}


def _positions(settings: EngineSettings, rounds: int) -> int:
    """Positions that the rounds need: full cells, then one eviction per round and the one that warms up."""
    evict = settings.evict()
    if not isinstance(evict.budget, int) or evict.reserve is None:
        raise RestkvError("restkv-bench device needs --budget and --reserve in cells")
    return evict.budget + evict.reserve * (rounds + 2) + 1


def _evictions(engine: Engine, events: list[Any], rounds: int, copy: float, say: Say) -> dict[str, Any]:
    """Read until the cells are full; then, round by round, as many tokens as the reserve holds. The first of them makes
    an eviction, which llama.cpp waits for, so what is left of the time is reading."""
    report = engine.report()
    reserve, capacity = report.reserve, report.capacity
    tokens = prose_tokens(capacity + (rounds + 1) * reserve, engine.tokenize)
    engine.eval(tokens[:capacity])
    reading: list[float] = []
    found: list[Any] = []
    for number in range(rounds + 1):
        say("the first eviction, to warm up" if number == 0 else f"eviction {number} of {rounds}")
        events.clear()
        first = capacity + number * reserve
        start = time.perf_counter()
        engine.eval(tokens[first : first + reserve])
        synchronize(engine)
        took = time.perf_counter() - start
        if len(events) != 1:
            raise RestkvError(f"{len(events)} evictions happened where one was expected; this is an error of the bench")
        if number:
            reading.append(took - events[0].seconds)
            found.append(events[0])
    first_seconds = _first(engine, tokens[:reserve], rounds, say)
    seconds = [event.seconds for event in found]
    last = found[-1]
    # K and V of every cell are looked at once; what stays is read and written.
    n_read = report.kv_bytes // report.capacity * last.cells_before
    n_bytes = n_read + 2 * last.bytes_moved
    median = statistics.median(seconds)
    after = engine.report()
    return {
        "model": report.model,
        "backend": after.backend,
        "backend_reason": after.backend_reason,
        "budget": report.budget,
        "reserve": reserve,
        "layers": last.layers,
        "layers_graph": last.layers_graph,
        "layers_host": last.layers_host,
        "cells_before": last.cells_before,
        "cells_after": last.cells_after,
        "seconds": median,
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "stages": {name: statistics.median(getattr(event, f"{name}_seconds") for event in found) for name in STAGES},
        "bytes": n_bytes,
        "bytes_per_s": n_bytes / median,
        "seconds_bound": n_bytes / copy,
        "prefill_tokens": reserve,
        "prefill_seconds": statistics.median(reading),
        "evict_share": median / statistics.median(reading),
        "first_seconds": first_seconds,
        "first_tokens_per_s": reserve / first_seconds,
        "evict_share_of_first": median / first_seconds,
    }


def _first(engine: Engine, tokens: Sequence[int], rounds: int, say: Say) -> float:
    """Seconds that a full cache needs for these tokens when it is empty: the least attention there is."""
    say(f"reading {len(tokens):,} tokens into an empty full cache")
    stock = _stock(engine, len(tokens))
    try:
        seconds = []
        for _ in range(rounds + 1):
            stock.clear()
            seconds.append(stock.read(tokens))
        return statistics.median(seconds[1:])
    finally:
        stock.close()


def _memory(engine: Engine, where: str, free_before: int, text: int, say: Say) -> dict[str, Any]:
    """Bytes: of the cells and what evictions add, as counted by the library; what the device has less of than before
    the model was loaded (with the weights, llama.cpp's work buffers and the driver's own); what was allocated, by
    device; a full cache of the text, counted and as the device tells it."""
    report, stats = engine.report(), native.Stats()
    native.check(native.lib().restkv_get_stats(engine.ctx, ctypes.byref(stats)))
    parts = {
        "kv_bytes": report.kv_bytes,
        "ring_bytes": report.ring_bytes,
        "table_bytes": report.table_bytes,
        "wo_bytes": report.wo_bytes,
        "graph_bytes": int(stats.bytes_graph),
        "scratch_bytes": int(stats.bytes_scratch),
    }
    evicting = sum(parts.values())
    known = find_device(where)
    found: dict[str, Any] = {**parts, "evicting_bytes": evicting, "weight_bytes": model_bytes(engine)["all"]}
    found["by_device"] = [asdict(part) | {"used_bytes": part.used_bytes} for part in report.memory]
    found["device_used_bytes"] = None if known.kind == "cpu" else max(0, free_before - known.memory_free)
    found |= {"stock_kv_bytes": None, "stock_device_bytes": None, "saved": None}
    if not text:
        return found
    found["stock_kv_bytes"] = report.kv_bytes // report.capacity * text
    found["saved"] = 1 - evicting / found["stock_kv_bytes"]
    if known.kind != "cpu":
        say(f"a full cache of {text:,} cells ({size(found['stock_kv_bytes'])})")
        try:
            stock = _stock(engine, text)
        except RestkvError:
            return found | {"stock_failed": f"the full cache of {text} cells does not fit this device"}
        found["stock_device_bytes"] = max(0, known.memory_free - find_device(where).memory_free)
        stock.close()
    return found


def model_bytes(engine: Engine) -> dict[str, int]:
    """Bytes of all weights, and of those that one token reads: of a table of embeddings that is not the head as well,
    it reads one row."""
    import gguf

    all_bytes = table = 0
    tied = True
    for tensor in gguf.GGUFReader(engine.model_path).tensors:
        all_bytes += int(tensor.n_bytes)
        table = int(tensor.n_bytes) if tensor.name == "token_embd.weight" else table
        tied = tied and tensor.name != "output.weight"
    return {"all": all_bytes, "token": all_bytes if tied else all_bytes - table}


def bounds(
    row: dict[str, Any], weights: dict[str, int], cell: int, budget: int, copy: float, first_tokens_per_s: float
) -> dict[str, Any]:
    """What arithmetic allows, beside what was measured.

    A step of decoding reads the weights and the cells once, at the speed of a copy. Reading a prompt is at best as fast
    as its beginning, where there is hardly any attention. first: seconds to the first token of an answer.
    """
    text = row["context"]
    found: dict[str, Any] = {
        "decode_ms_bound": 1000 * (weights["token"] + cell * budget) / copy,
        "stock_decode_ms_bound": 1000 * (weights["token"] + cell * text) / copy,
        "first_token_seconds_bound": text / first_tokens_per_s,
    }
    for side in ("", "stock_"):
        speed, step = row[f"{side}prefill_tokens_per_s"], row[f"{side}decode_ms"]
        found[f"{side}first_token_seconds"] = None if speed is None else text / speed + step / 1000
    return found


def _stock(engine: Engine, n_ctx: int) -> StockCache:
    params = engine.context_params
    return StockCache(
        engine.model, n_ctx,
        n_batch=engine.n_batch, n_threads=engine.n_threads, n_threads_batch=engine.n_threads_batch,
        type_k=params.type_k, type_v=params.type_v,
    )  # fmt: skip
