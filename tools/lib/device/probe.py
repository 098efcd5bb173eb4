"""The steps of tools/gpu_check.py that need the package. Each writes one JSON file:

    python probe.py about FILE                  devices, versions
    python probe.py fused FILE [quick]          our own kernels on the CPU against the reference
    python probe.py stages FILE DEVICE [quick]  the stages on a device against the CPU
    python probe.py engine FILE LAYERS CELLS TOKENS
        the embedded model with so many layers on the GPU against the CPU: CELLS survive an eviction, as many are free

and `python probe.py restkv-bench WORDS` is that program, where it is not installed.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any, Literal

# Tokens of an answer.
ANSWER = 32
# A device computes the whole model in its own way, and what it keeps may differ by near ties that add up. This only
# catches what is plainly wrong; single stages are held to tighter bounds elsewhere. In natural logarithms.
LOGPROB_MAX = 0.1


def about() -> dict[str, Any]:
    """Devices as ggml tells them, versions, and the name of the embedded model, if it is there."""
    from restkv_local.bench.origin import device, versions
    from restkv_local.check import devices
    from restkv_local.errors import ModelError
    from restkv_local.models.files import embedded_path

    try:
        embedded = embedded_path().name
    except ModelError:
        embedded = None
    return {
        "embedded_model": embedded,
        "device": device(),
        "devices": [found.to_json() for found in devices()],
        "versions": versions() | {"numpy": _version("numpy"), "machine": platform.machine()},
    }


def fused(quick: bool) -> dict[str, Any]:
    """The yardstick itself."""
    from restkv_local.check import check_fused

    return check_fused(quick).to_json()


def stages(name: str, quick: bool) -> dict[str, Any]:
    """All stages on one device."""
    from restkv_local.check import check_device

    return check_device(name, quick).to_json()


def engine(layers: int, cells: int, n_tokens: int) -> dict[str, Any]:
    """The embedded model reads a text and answers, three times: with graphs where its cache lives, through a copy
    on the host, and on the CPU alone."""
    graph = _read(layers, "graph", cells, n_tokens)
    host = _read(layers, "host", cells, n_tokens)
    cpu = _read(0, "fused", cells, n_tokens)
    return compared(graph, host, cpu)


def compared(graph: dict[str, Any], host: dict[str, Any], cpu: dict[str, Any]) -> dict[str, Any]:
    """Figures of three readings of one text.

    first_sets: share of the cells that graphs and host copy both keep in the first eviction, which sees the same cells.
    sets, logprob_difference, tokens: graphs against the CPU at the end: cells, the mean log-probability of the same
    next tokens, and how many of the likeliest tokens agree. first_sets_min, logprob_max: what is asked.
    """
    from restkv_local.config import CHECK_SETS_MIN

    difference = abs(graph["logprob"] - cpu["logprob"])
    agree = sum(a == b for a, b in zip(graph["tokens"], cpu["tokens"], strict=True))
    return {
        "backend": graph["backend"],
        "backend_reason": graph["backend_reason"],
        "evictions": graph["evictions"],
        "first_sets_min": CHECK_SETS_MIN,
        "logprob_max": LOGPROB_MAX,
        "first_sets": _shared(graph["first"], host["first"]),
        "sets": _shared(graph["last"], cpu["last"]),
        "logprob": graph["logprob"],
        "logprob_cpu": cpu["logprob"],
        "logprob_difference": difference,
        "tokens": agree,
        "tokens_of": len(cpu["tokens"]),
        "seconds": {"graph": graph["seconds"], "host": host["seconds"], "cpu": cpu["seconds"]},
        "evict_seconds": {name: run["evict_seconds"] for name, run in
                          (("graph", graph), ("host", host), ("cpu", cpu))},
    }  # fmt: skip


def _read(layers: int, way: Literal["graph", "host", "fused"], cells: int, n_tokens: int) -> dict[str, Any]:
    import time

    import numpy as np

    from restkv_local import Engine, EvictConfig
    from restkv_local.bench.prose import prose_tokens

    evict = EvictConfig(budget=cells, reserve=cells, stages=way)
    model = Engine(n_ctx=n_tokens + 2 * ANSWER, evict=evict, n_gpu_layers=layers)
    try:
        tokens = prose_tokens(n_tokens + ANSWER, model.tokenize)
        full = 2 * cells
        start = time.perf_counter()
        model.eval(tokens[:full])
        model.eval([tokens[full]])  # makes the first eviction
        kept = _kept(model, full - evict.window)
        model.eval(tokens[full + 1 : n_tokens])
        last = _kept(model, n_tokens)
        logits = model.read_logits(tokens[n_tokens:]).astype(np.float64)
        seconds = time.perf_counter() - start
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        report = model.report()
        return {
            "backend": report.backend,
            "backend_reason": report.backend_reason,
            "evictions": report.n_evictions,
            "evict_seconds": sum(eviction.seconds for eviction in report.evictions),
            "first": kept,
            "last": last,
            # the likelihood of each forced token, given those before it
            "logprob": float(logits[np.arange(ANSWER - 1), tokens[n_tokens + 1 :]].mean()),
            "tokens": [int(token) for token in logits.argmax(axis=1)],
            "seconds": seconds,
        }
    finally:
        model.close()


def _kept(model: Any, below: int) -> list[set[int]]:
    """Positions before `below` that each KV head of each layer holds."""
    from restkv_local.errors import ConfigError

    found: list[set[int]] = []
    for layer in range(model.plan.n_layer):
        for head in range(1024):
            try:
                found.append({int(position) for position in model.kept(layer, head) if position < below})
            except ConfigError:
                break
    return found


def _shared(some: list[set[int]], others: list[set[int]]) -> float:
    """Share of the positions of all heads that are in both."""
    total = sum(map(len, others))
    return sum(len(a & b) for a, b in zip(some, others, strict=True)) / total if total else 1.0


def _version(name: str) -> str:
    from importlib import metadata

    return metadata.version(name)


def main(words: list[str]) -> int:
    """Do what the words say. restkv-bench exits by itself."""
    if words[:1] == ["restkv-bench"]:
        from restkv_local.cli.bench.main import main as bench

        bench(words[1:], prog_name=words[0])
    step, target, *rest = words
    if step == "about":
        result = about()
    elif step == "fused":
        result = fused("quick" in rest)
    elif step == "stages":
        result = stages(rest[0], "quick" in rest[1:])
    elif step == "engine":
        result = engine(*map(int, rest))
    else:
        print(f"there is no step '{step}'", file=sys.stderr)
        return 2
    Path(target).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
