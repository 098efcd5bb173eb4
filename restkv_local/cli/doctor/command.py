"""`restkv-chat doctor`: does this machine evict right, on each of its devices, and does memory stay flat?"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ...config import MEMORY_GROWTH_MAX, EvictConfig
from ...engine.settings import EngineSettings
from ...errors import ConfigError, ModelError, RestkvError
from ..failure import Command
from ..options import CONTEXT_SETTINGS, json_option, write_json

# Two texts of these lengths are read in a cache of so many cells.
LENGTHS = (768, 2304)
BUDGET, RESERVE = 256, 256
_CONTEXT = 8192
# For ggml: the memory in question is the host's, so no GPU helps with large batches, which takes a slow one minutes.
_ON_THE_CPU = {"GGML_OP_OFFLOAD_MIN_BATCH": str(2**31 - 1)}

Say = Callable[[str], None]


def examine(names: tuple[str, ...], *, memory: bool, say: Say) -> dict[str, Any]:
    """Everything that the doctor finds, as plain values: devices, checks, memory, versions, verdict.

    names: of the devices to check; empty: all that can hold a cache. Raises ConfigError for an unknown device and
    LibraryError when the library is missing.
    """
    from ... import native
    from ...bench.origin import device as machine
    from ...bench.origin import versions
    from ...check import check_device, check_fused, devices
    from ...check.first_load import HOLD_LAYERS, WRONG, distrust, remember

    start = time.perf_counter()
    known = devices()
    for name in names:
        if name not in {device.name for device in known}:
            raise ConfigError(f"there is no device '{name}'; known are {', '.join(device.name for device in known)}")
    checks, switched = [], []
    for device in known:
        if names and device.name not in names or device.kind not in ("cpu", *HOLD_LAYERS):
            continue
        if device.kind == "cpu":
            say(f"{device.name}: our own kernels against the reference (compiled on the first run)")
            checks.append(check_fused())
        say(f"{device.name}: every stage as a graph against our own kernels")
        checks.append(check_device(device.name))
        if device.kind in HOLD_LAYERS and distrust(device, remember(checks[-1])):
            switched.append(device.name)
    flat = _memory(say) if memory else {"verdict": "skipped", "reason": "--no-memory was given"}
    wrong = any(check.verdict in WRONG for check in checks) or flat["verdict"] in WRONG
    return {
        "verdict": "mismatch" if wrong else "ok",
        "devices": [device.to_json() for device in known],
        "checks": [check.to_json() for check in checks],
        "through_host": switched,
        "memory": flat,
        "versions": versions() | {"interface": native.ABI_VERSION, "library": str(native.library_dir())},
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - start,
    }


def _memory(say: Say) -> dict[str, Any]:
    """Peak memory of two processes that read texts of different length with the embedded model."""
    from ...bench.speed import peak_of_child
    from ...models.files import embedded_path

    try:
        embedded_path()
    except ModelError as error:
        return {"verdict": "skipped", "reason": str(error)}
    settings = EngineSettings(
        model=None, context=_CONTEXT, budget=BUDGET, reserve=RESERVE, method=EvictConfig.method, prefill=None,
        kv_type="f16", threads=None, gpu_layers=0, seed=None, unverified=False,
    )  # fmt: skip
    runs = []
    for length in LENGTHS:
        say(f"memory: the embedded model reads {length:,} tokens in {BUDGET + RESERVE} cells")
        try:
            runs.append(peak_of_child(settings, _CONTEXT, length, _ON_THE_CPU))
        except RestkvError as error:
            return {"verdict": "failed", "reason": str(error), "runs": runs}
    short, long = (run["peak_rss_bytes"] for run in runs)
    if not short:
        return {"verdict": "skipped", "reason": "this system does not tell the peak memory of a process", "runs": runs}
    growth = long / short - 1.0
    bad = growth > MEMORY_GROWTH_MAX
    return {
        "verdict": "mismatch" if bad else "ok",
        "reason": f"peak memory grew by {growth:.1%} with the text" if bad else "",
        "growth": growth,
        "allowed": MEMORY_GROWTH_MAX,
        "cells": BUDGET + RESERVE,
        "runs": runs,
    }


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.option("--device", "names", metavar="NAME", multiple=True, help="Check this device only. Repeatable.")
@click.option("--no-memory", is_flag=True, help="Leave out the two runs of the embedded model.")
@json_option("Write all figures here.")
def doctor(names: tuple[str, ...], no_memory: bool, json_file: Path | None) -> None:
    """Check that evictions are right on this machine.

    Every stage of an eviction runs on each device, on small random arrays, and is compared with the CPU; the CPU with
    the reference. Times and bandwidth are measured, and the embedded model reads a short and a long text in the same
    memory. Takes about half a minute. The exit code is 1 when something is wrong.
    """
    from rich.console import Console

    from .show import show

    progress = Console(stderr=True, highlight=False)
    found = examine(names, memory=not no_memory, say=lambda text: progress.print(text, style="dim", markup=False))
    # The report is the answer: standard output. A log takes the whole table; a terminal has its own width.
    show(found, Console(highlight=False, width=None if sys.stdout.isatty() else 120))
    if json_file is not None:
        write_json(json_file, found)
        progress.print(f"all figures: {json_file}", style="dim", markup=False, soft_wrap=True)
    if found["verdict"] != "ok":
        raise SystemExit(1)
