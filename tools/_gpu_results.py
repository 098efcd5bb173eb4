"""The table of benchmarks/gpu-check*.json: one row per device that tools/gpu_check.py ran on."""

from __future__ import annotations

import json
from typing import Any

import _results

COMMAND = "python3 tools/gpu_check.py --json benchmarks/gpu-check-NAME.json"
_HEADER = (
    "device", "model", "eviction", "of reading", "of a copy", "a token", "full cache", "first token", "full cache",
    "memory saved", "checks", "date",
)  # fmt: skip


def gpu_checks() -> str:
    """What was measured on each device, or how to measure it."""
    rows = []
    for path in sorted(_results.FOLDER.glob("gpu-check*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        rows.append(_row(result))
    if not rows:
        return f"Not measured yet; the command is `{COMMAND}`."
    return f"{_results.table(_HEADER, rows)}\n\nCommand: `{COMMAND}`."


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    """A row; a dash for what was left out or went wrong."""
    steps = result["steps"]
    wrong = [step["name"] for step in steps if step["status"] == "failed"]
    names = {device["name"]: device["description"] for device in result.get("devices", [])}
    where = result.get("on", "-")
    bench = next((step["result"] for step in steps if step["name"] == "bench" and step["result"]), None)
    figures = _figures(bench) if bench else ("-",) * 9
    done = f"{sum(step['status'] == 'ok' for step in steps)} right" + (f", wrong: {', '.join(wrong)}" if wrong else "")
    return (f"{names.get(where, where)} ({where})", *figures, done, result["date"][:10])


def _figures(bench: dict[str, Any]) -> tuple[str, ...]:
    eviction, memory, text = bench["eviction"], bench["memory"], bench.get("text") or {}
    layers = f"{eviction['model']}, {eviction['cells_before']:,} to {eviction['cells_after']:,} cells"
    return (
        layers,
        f"{eviction['seconds'] * 1000:.1f} ms",
        f"{eviction['evict_share']:.1%}",
        f"{eviction['bytes_per_s'] / bench['copy_bytes_per_s']:.0%}",
        *(_with_bound(text, f"{side}decode_ms", "{:.1f} ms") for side in ("", "stock_")),
        _with_bound(text, "first_token_seconds", "{:.1f} s"),
        _plain(text, "stock_first_token_seconds", "{:.1f} s"),
        _plain(memory, "saved", "{:.1%}"),
    )


def _with_bound(values: dict[str, Any], key: str, form: str) -> str:
    """A figure, and in brackets what arithmetic allows."""
    said = _plain(values, key, form)
    return said if said == "-" else f"{said} ({form.format(values[f'{key}_bound'])})"


def _plain(values: dict[str, Any], key: str, form: str) -> str:
    value = values.get(key)
    return "-" if value is None else form.format(value)
