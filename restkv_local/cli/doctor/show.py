"""What `restkv-chat doctor` prints: devices, checks, speed, memory, and what to do."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...plan.machine import size

_WORDS = {
    "ok": ("right", "green"),
    "mismatch": ("WRONG", "bold red"),
    "failed": ("FAILED", "bold red"),
    "unsupported": ("not possible", "yellow"),
    "skipped": ("skipped", "yellow"),
}
_LACKING = "{name} lacks an operation: evictions of its layers go through the host, which is right but slower."
_NO_REFERENCE = "Our kernels were not compared with the reference, only moved rows with numpy: {reason}."
_WRONG_DEVICE = (
    "{name} gives wrong results. Evictions of its layers go through the host from now on: answers are right, evictions "
    "slower. Update its driver, then run restkv-chat doctor again."
)
_WRONG_GRAPHS = "Graphs on {name} give wrong results. They run only with stages='graph'; leave it at 'auto'."
_WRONG_KERNELS = (
    "Our kernels give wrong results on this processor: do not trust answers of this build. Install it again on this "
    "machine with pip install . and run restkv-chat doctor again."
)


def show(found: dict[str, Any], console: Console) -> None:
    """Print the findings of `examine`."""
    console.print(_devices(found["devices"]))
    console.print(_checks(found["checks"]))
    for check in found["checks"]:
        if check["reason"]:
            console.print(f"{_name(check)}: {check['reason']}", style="dim", markup=False, soft_wrap=True)
    speeds = [check for check in found["checks"] if check["speed"]]
    if speeds:
        console.print(_speeds(speeds))
    _memory(found["memory"], console)
    console.print()
    for text, style in advice(found):
        console.print(text, style=style, markup=False, soft_wrap=True)


def advice(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The verdict in sentences, each with its style: what is wrong, what it means, what to do."""
    lines: list[tuple[str, str]] = []
    for check in found["checks"]:
        name = check["device"]["name"]
        lacking = [stage for stage in check["stages"] if stage["verdict"] == "unsupported"]
        if check["yardstick"] == "reference" and lacking:
            lines.append((_NO_REFERENCE.format(reason=lacking[0]["reason"]), "yellow"))
        if check["verdict"] == "ok":
            continue
        if check["verdict"] == "unsupported":
            lines.append((_LACKING.format(name=name), "yellow"))
        elif check["yardstick"] == "reference":
            lines.append((_WRONG_KERNELS, "bold red"))
        elif name in found["through_host"]:
            lines.append((_WRONG_DEVICE.format(name=name), "bold red"))
        else:
            lines.append((_WRONG_GRAPHS.format(name=name), "bold red"))
    memory = found["memory"]
    if memory["verdict"] == "mismatch":
        lines.append((f"Memory is not flat: {memory['reason']}.", "bold red"))
    elif memory["verdict"] == "failed":
        lines.append((f"Memory could not be measured: {memory['reason']}.", "bold red"))
    if found["verdict"] != "ok":
        return [*lines, ("Report it with the file that --json FILE writes.", "bold red")]
    checked = ", ".join(dict.fromkeys(check["device"]["name"] for check in found["checks"]))
    flat = " and memory is flat" if memory["verdict"] == "ok" else ""
    gpus = [device for device in found["devices"] if device["kind"] in ("gpu", "igpu")]
    end = "" if gpus else " No GPU was found: everything runs on the CPU."
    return [*lines, (f"All is well: evictions are right on {checked}{flat}.{end}", "bold green")]


def _name(check: dict[str, Any]) -> str:
    return f"{check['device']['name']}, {'own kernels' if check['yardstick'] == 'reference' else 'graphs'}"


def _devices(devices: list[dict[str, Any]]) -> Table:
    table = Table(title="Devices")
    for name in ("device", "what", "through", "memory", "free", "driver"):
        table.add_column(name, justify="right" if name in ("memory", "free") else "left")
    for device in devices:
        table.add_row(
            escape(device["name"]), escape(device["description"]), f"{device['backend']} ({device['kind']})",
            _bytes(device["memory_total"]), _bytes(device["memory_free"]), device["driver"] or "-",
        )  # fmt: skip
    return table


def _checks(checks: list[dict[str, Any]]) -> Table:
    caption = "Error: the largest, relative. Sets: chosen cells that agree, the least."
    table = Table(title="Stages of an eviction, and of a recall", caption=caption)
    for name in ("device", "verdict", "cases", "error", "sets", "rows moved", "time"):
        table.add_column(name, justify="left" if name in ("device", "verdict", "rows moved") else "right")
    for check in checks:
        word, style = _WORDS[check["verdict"]]
        ran = [stage for stage in check["stages"] if stage["verdict"] != "unsupported"]
        table.add_row(
            _name(check), f"[{style}]{word}[/]", f"{len(ran)} of {len(check['stages'])}",
            "-" if check["error"] is None else f"{check['error']:.0e}",
            "-" if check["sets"] is None else f"{check['sets']:.1%}",
            {True: "bit for bit", False: "[bold red]not equal[/]", None: "-"}[check["rows_equal"]],
            f"{check['seconds']:.1f} s",
        )  # fmt: skip
    return table


def _speeds(checks: list[dict[str, Any]]) -> Table:
    table = Table(title="One layer's eviction as graphs")
    for name in ("device", "heads", "cells", "attend + score", "choose", "compact", "copy"):
        table.add_column(name, justify="left" if name in ("device", "heads", "cells") else "right")
    for check in checks:
        speed, shape = check["speed"], check["speed"]["shape"]
        table.add_row(
            check["device"]["name"], f"{shape['heads']} on {shape['kv_heads']} of {shape['head_size']}",
            f"{shape['cells']:,} to {shape['budget']:,}", _ms(speed["attend_seconds"]), _ms(speed["choose_seconds"]),
            f"{_ms(speed['compact_seconds'])}, {size(speed['compact_bytes_per_s'])}/s",
            f"{size(speed['copy_bytes_per_s'])}/s",
        )  # fmt: skip
    return table


def _memory(memory: dict[str, Any], console: Console) -> None:
    if memory["verdict"] == "skipped":
        text = f"Memory: not measured; {memory['reason']}"
    elif len(memory["runs"]) < 2:
        text = f"Memory: {memory['reason']}"
    else:
        peaks = [f"{size(run['peak_rss_bytes'])} for {run['tokens']:,} tokens" for run in memory["runs"]]
        text = f"Memory: peaks of {' and '.join(peaks)}, {memory['growth']:+.1%}; up to {memory['allowed']:.0%} is flat"
    console.print(text, markup=False, soft_wrap=True)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _bytes(n: int) -> str:
    return size(n) if n else "-"
