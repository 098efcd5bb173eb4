"""Tables of what was measured on devices: benchmarks/gpu-check*.json of tools/gpu_check.py, and, where its parts were
run one by one, device-NAME.json of `restkv-bench device` with stages-NAME.json and tests-NAME.json beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from . import results

COMMAND = "python3 tools/gpu_check.py --json benchmarks/gpu-check-NAME.json"
BENCH = "restkv-bench device --model model.gguf --json benchmarks/device-NAME.json"
_HEADER = (
    "device", "model", "eviction", "of reading", "of a copy", "a token", "full cache", "first token", "full cache",
    "memory saved", "checks", "date",
)  # fmt: skip
_STAGES = ("attend", "score", "smooth", "select", "compact")
_PARTS = ("device", "eviction", *_STAGES, "in no stage", "reading", "of reading", "asked", "memory saved", "asked")


@dataclass(frozen=True)
class _Measured:
    """One device. checks: what was right and wrong, in words; bench: what `restkv-bench device` wrote, if anything."""

    device: str
    checks: str
    date: str
    bench: dict[str, Any] | None


def gpu_checks() -> str:
    """What was measured on each device, or how to measure it."""
    found = _measured()
    if not found:
        return f"Not measured yet; the command is `{COMMAND}`."
    rows = [(one.device, *_figures(one.bench), one.checks, one.date) for one in found]
    return f"{results.table(_HEADER, rows)}\n\nCommand: `{COMMAND}`, or `{BENCH}`."


def gpu_evictions() -> str:
    """Where the time of an eviction goes, and what is asked of it."""
    rows = [(one.device, *_parts(one.bench)) for one in _measured() if one.bench]
    return results.table(_PARTS, rows) if rows else f"Not measured yet; the command is `{COMMAND}`."


def _measured() -> list[_Measured]:
    """Whole checks first, then what was measured alone."""
    found = [_check(_read(path.name)) for path in sorted(results.FOLDER.glob("gpu-check*.json"))]
    for path in sorted(results.FOLDER.glob("device-*.json")):
        bench, name = _read(path.name), path.stem.partition("-")[2]
        checks = [_stages(_read(f"stages-{name}.json")), _tests(_read(f"tests-{name}.json"))]
        found.append(_Measured(_where(bench), "; ".join(filter(None, checks)) or "-", bench["date"][:10], bench))
    return found


def _read(name: str) -> Any:
    """A file of benchmarks/, or None."""
    path = results.FOLDER / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _check(result: dict[str, Any]) -> _Measured:
    """What tools/gpu_check.py wrote; a dash stands for what was left out or went wrong."""
    steps = result["steps"]
    wrong = [step["name"] for step in steps if step["status"] == "failed"]
    bench = next((step["result"] for step in steps if step["name"] == "bench" and step["result"]), None)
    done = f"{sum(step['status'] == 'ok' for step in steps)} right" + (f", wrong: {', '.join(wrong)}" if wrong else "")
    return _Measured(_where(result), done, result["date"][:10], bench)


def _where(result: dict[str, Any]) -> str:
    """Description and name of the device that held the cells."""
    names = {device["name"]: device["description"] for device in result.get("devices", [])}
    where = result.get("on", "-")
    return f"{names.get(where, where)} ({where})"


def _stages(result: dict[str, Any] | None) -> str:
    """What the check of the stages found."""
    if result is None:
        return ""
    right = sum(stage["verdict"] == "ok" for stage in result["stages"])
    return f"{right} of {len(result['stages'])} cases of the stages right"


def _tests(result: dict[str, Any] | None) -> str:
    """Counts of the tests of the graphs, and which failed."""
    if result is None:
        return ""
    ran = result["tests"] - result["skipped"]
    failed = [f"`{name.rpartition('::')[2]}`" for name in result["failed"]]
    wrong = f", failed: {', '.join(failed)}" if failed else ""
    return f"{ran - result['failures'] - result['errors']} of {ran} tests passed{wrong}"


def _figures(bench: dict[str, Any] | None) -> tuple[str, ...]:
    if bench is None:
        return ("-",) * 9
    eviction, memory, text = bench["eviction"], bench["memory"], bench.get("text") or {}
    of_copy = eviction["bytes_per_s"] / bench["copy_bytes_per_s"]
    layers = f"{eviction['model']}, {eviction['cells_before']:,} to {eviction['cells_after']:,} cells"
    return (
        layers,
        f"{eviction['seconds'] * 1000:.1f} ms",
        f"{eviction['evict_share']:.1%}",
        f"{of_copy:.0%}" if of_copy >= 0.01 else f"{of_copy:.1%}",
        *(_with_bound(text, f"{side}decode_ms", "{:.1f} ms") for side in ("", "stock_")),
        _with_bound(text, "first_token_seconds", "{:.1f} s"),
        _plain(text, "stock_first_token_seconds", "{:.1f} s"),
        _plain(memory, "saved", "{:.1%}"),
    )


def _parts(bench: dict[str, Any]) -> tuple[str, ...]:
    """Milliseconds of the stages, and the targets with what came out."""
    eviction = bench["eviction"]
    stages = [eviction["stages"][name] for name in _STAGES]
    seconds = [eviction["seconds"], *stages, eviction["seconds"] - sum(stages)]
    reading = f"{eviction['prefill_tokens']:,} tokens in {eviction['prefill_seconds'] * 1000:.0f} ms"
    targets = [part for name in ("evict_share", "saved") for part in _target(bench["targets"].get(name))]
    return (*(f"{value * 1000:.1f} ms" for value in seconds), reading, *targets)


def _target(target: dict[str, Any] | None) -> tuple[str, str]:
    """A figure, and what is asked of it."""
    if target is None:
        return "-", "-"
    asked = f"at most {target['most']:.0%}" if target["most"] is not None else f"at least {target['least']:.0%}"
    met = {True: "met", False: "missed", None: "not measured"}[target["met"]]
    return "-" if target["value"] is None else f"{target['value']:.1%}", f"{asked}: {met}"


def _with_bound(values: dict[str, Any], key: str, form: str) -> str:
    """A figure, and in brackets what arithmetic allows."""
    said = _plain(values, key, form)
    return said if said == "-" else f"{said} ({form.format(values[f'{key}_bound'])})"


def _plain(values: dict[str, Any], key: str, form: str) -> str:
    value = values.get(key)
    return "-" if value is None else form.format(value)
