"""Tables of benchmarks/*.json, as blocks of the docs. No number of a measurement is written by hand."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..setup.source import ROOT

FOLDER = ROOT / "benchmarks"
# File -> the command that makes it, from the root of a checkout.
COMMANDS = {
    "speed": "restkv-bench speed --contexts 4096,16384,32768,131072 --budget 1024 --json benchmarks/speed.json",
    "memory": "restkv-bench memory --json benchmarks/memory.json",
    "patch-cost": "python3 tools/patch_cost.py --json benchmarks/patch-cost.json",
    "archive": "restkv-bench archive --json benchmarks/archive-6k.json",
    "needle": "restkv-bench needle --reserve 2048 --allocations ada,uniform --json benchmarks/needle.json",
}


def speed() -> str:
    """Decode and prefill against the full cache of llama.cpp, one row per length."""
    result = load("speed")
    if result is None:
        return _missing("speed")
    header = ("text", "decode", "full cache", "faster", "prefill", "full cache", "faster", "evictions", "fits")
    rows = []
    for row in result["rows"]:
        rows.append(
            (
                f"{row['context']:,}",
                _number(row, "decode_ms", "{:.1f} ms"),
                _number(row, "stock_decode_ms", "{:.1f} ms"),
                _range(row, "decode_ratio"),
                _number(row, "prefill_tokens_per_s", "{:.0f} tok/s"),
                _number(row, "stock_prefill_tokens_per_s", "{:.0f} tok/s"),
                _range(row, "prefill_ratio"),
                _number(row, "evict_share", "{:.1%}"),
                _range(row, "capture_ratio", 3),
            )
        )
    notes = [f"- {row['context']:,}: {note}" for row in result["rows"] for note in row.get("notes", ())]
    return "\n\n".join(part for part in (table(header, rows), "\n".join(notes), _origin(result, "speed")) if part)


def memory() -> str:
    """Size of the cache and peak memory of restkv-chat by length, beside what a full cache takes."""
    result = load("memory")
    if result is None:
        return _missing("memory")
    header = ("context", "prompt", "KV cache", "full KV cache", "peak memory", "evictions", "reading", "evicting")
    rows = []
    for row in result["rows"]:
        full = row["kv_bytes"] // row["capacity"] * row["prompt_tokens"]
        sizes = (size_of(row["kv_bytes"]), size_of(full), size_of(row["peak_rss_bytes"]))
        seconds = row["prefill_seconds"]
        share = f"{row['evict_seconds'] / seconds:.1%}"
        lengths = (f"{row['context']:,}", f"{row['prompt_tokens']:,} tokens")
        rows.append((*lengths, *sizes, f"{row['evictions']:,}", f"{seconds:.0f} s", share))
    return f"{table(header, rows)}\n\n{_origin(result, 'memory')}"


def needle() -> str:
    """Log-probability of a fact in a long text, beside that of the full cache."""
    result = load("needle")
    if result is None:
        return _missing("needle")
    from restkv_local.eval.needle import COLUMNS, table_row

    rows = [table_row(row) for row in result["rows"]]
    settings = result["settings"]
    size = f"{settings['depths']} depths of a text of {settings['context']:,} tokens."
    return f"{table(COLUMNS, rows)}\n\n{size} {_origin(result, 'needle')}"


def patch_cost() -> str:
    """The patched library without eviction against the unpatched one."""
    result = load("patch-cost")
    if result is None:
        return _missing("patch-cost")
    rows = []
    for name, what in (("decode", "a token"), ("prefill", "reading 512 tokens")):
        times = (f"{result[key]:.2f} ms" for key in (f"{name}_ms", f"stock_{name}_ms"))
        rows.append((what, *times, _range(result, f"{name}_ratio", 3)))
    nodes = ", ".join(f"{graph['nodes']} nodes for {n} tokens" for n, graph in result["graphs"].items())
    same = f"The graphs {'are the same' if result['same_graphs'] else 'differ'} ({nodes})."
    where = f"{result['settings']['pairs']} pairs, {result['device']}, {result['model']}, {result['date'][:10]}."
    shown = table(("", "patched", "unpatched", "faster"), rows)
    return f"{shown}\n\n{same} {where} Command: `{COMMANDS['patch-cost']}`."


def machine() -> str:
    """Where the figures of the speed table come from."""
    result = load("speed")
    if result is None:
        return _missing("speed")
    rows = [*result.get("device", {}).items(), *result.get("versions", {}).items()]
    names = ("model", "backend", "n_threads", "n_threads_batch", "n_batch", "budget", "capacity", "kv_type")
    rows += [(name, result["settings"][name]) for name in names if name in result.get("settings", {})]
    return table(("", ""), [(str(name).replace("_", " "), str(value)) for name, value in rows])


def load(name: str) -> dict[str, Any] | None:
    """benchmarks/NAME.json, or None when it was never measured."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _missing(name: str) -> str:
    return f"Not measured yet; the command is `{COMMANDS[name]}`."


def _origin(result: dict[str, Any], name: str) -> str:
    """One line: machine, model, date, and the command that repeats it."""
    device, settings = result.get("device", {}), result.get("settings", {})
    cores = f"{device['cores']} cores of {device['cpu']}" if device else ""
    model = str(settings.get("model") or result["rows"][0].get("model", ""))
    where = ", ".join(part for part in (cores, Path(model).name, str(result.get("date", ""))[:10]) if part)
    command = result.get("command") or command_of(result, name)
    return f"{where}. Command: `{command}`." if where else f"Command: `{command}`."


def command_of(result: dict[str, Any], name: str, file: str = "") -> str:
    """The command line that the settings of a result say: every option that differs from its default. name: of its
    entry in COMMANDS; file: of the result, where it has another name."""
    from restkv_local.cli.bench.main import main

    words = shlex.split(COMMANDS[name])[:2]
    settings = result.get("settings", {})
    for option in main.commands[words[1]].params if settings else ():
        value = settings.get(option.name or "")
        if isinstance(value, list):
            value = tuple(value)
        if option.name in ("json_file", "model") or value in (None, False, option.default):
            continue
        if isinstance(option, click.Option) and option.multiple:
            for text in value:
                words += [] if text is None else [option.opts[-1], str(text)]  # None: chosen by the program
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [option.opts[-1]] if value is True else [option.opts[-1], text]
    return f"{shlex.join(words)} --json benchmarks/{file or name}.json" if settings else COMMANDS[name]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(row: dict[str, Any], name: str, form: str) -> str:
    value = row.get(name)
    return "-" if value is None else form.format(value)


def _range(row: dict[str, Any], name: str, digits: int = 1) -> str:
    """A ratio: the median of the pairs, least and most behind it."""
    if row.get(name) is None:
        return "-"
    value, low, high = (f"{row[key]:.{digits}f}" for key in (name, f"{name}_min", f"{name}_max"))
    return f"{value}x ({low} to {high})"


def size_of(bytes_: float) -> str:
    """Bytes for people."""
    from restkv_local.plan.machine import size

    return size(bytes_)
