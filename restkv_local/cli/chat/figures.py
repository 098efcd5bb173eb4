"""Numbers of a turn, as text for people and as the object of `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...bench.process import peak_rss_bytes
from ...plan.machine import size
from .session import Turn

if TYPE_CHECKING:
    from ...engine.report import Report
    from ...plan.devices import DeviceMemory


def speed(n_tokens: int, seconds: float) -> str:
    """Tokens per second, or a dash when nothing was measured."""
    if n_tokens <= 0 or seconds <= 0:
        return "- tok/s"
    return f"{n_tokens / seconds:.1f} tok/s"


def turn_line(turn: Turn) -> str:
    """One line: tokens, speeds, positions / context, cells kept / capacity, KV memory, evictions."""
    report = turn.report
    reused = f" (+{report.reused_tokens:,} reused)" if report.reused_tokens else ""
    new = f" (+{turn.evictions})" if turn.evictions else ""
    return " · ".join(
        (
            f"{report.read_tokens:,} tokens read{reused} {speed(report.read_tokens, report.prefill_seconds)}",
            f"{report.completion_tokens:,} answered {speed(report.completion_tokens, report.decode_seconds)}",
            f"positions {report.positions:,}/{report.context:,}",
            f"cells {report.cells:,}/{report.capacity:,}",
            f"KV {size(report.kv_bytes)}",
            f"evictions {report.n_evictions}{new}",
        )
    )


def recall_line(report: Report) -> str:
    """What the last turn took from the archive; "" when it took nothing."""
    if not report.copied_cells:
        return ""
    return f"recalled {report.copied_cells:,} cells in {report.recall_seconds:.1f} s"


def turn_object(turn: Turn, notices: Sequence[str] = ()) -> dict[str, Any]:
    """What `--json` prints. Sizes in bytes, times in seconds, lengths in positions or cells. notices: what was said."""
    report = turn.report
    return {
        "answer": turn.answer,
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": report.completion_tokens,
        "context": report.context,
        "budget": report.budget,
        "reserve": report.reserve,
        "capacity": report.capacity,
        "kv_bytes": report.kv_bytes,
        "evictions": report.n_evictions,
        "prefill_mode": report.prefill,
        "method": report.method,
        "backend": report.backend,
        "prefill_seconds": report.prefill_seconds,
        "evict_seconds": report.evict_seconds,
        "decode_seconds": report.decode_seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "model": report.model,
        "allocation": report.allocation,
        "budget_total": report.budget_total,
        "archive": report.archive.place if report.archive else "none",
        "archive_bytes": report.archive.bytes if report.archive else 0,
        "recalled_cells": report.recalled_cells,
        "copied_cells": report.copied_cells,
        "recall_seconds": report.recall_seconds,
        "finish_reason": turn.finish,
        "stopped": turn.stopped,
        "reused": report.reused_tokens,
        "recalled": report.recalled,
        "notices": list(notices),
    }


def memory_rows(memory: Sequence[DeviceMemory]) -> list[tuple[str, str]]:
    """What lies on each device, as names and values."""
    rows = []
    for m in memory:
        parts = {
            "weights": m.weights_bytes,
            f"cells of {m.layers} layers": m.kv_bytes,
            "other caches": m.other_bytes,
            "queries": m.ring_bytes,
            "output matrices": m.wo_bytes,
            "tables": m.table_bytes,
            "graphs": m.graph_bytes,
            "work buffers": m.compute_bytes,
        }
        free = f"; {size(m.free_bytes)} of {size(m.total_bytes)} free at load" if m.total_bytes else ""
        held = ", ".join(f"{name} {size(bytes_)}" for name, bytes_ in parts.items() if bytes_)
        rows.append((f"memory of {m.device}", f"{size(m.used_bytes)}: {held}{free}"))
    return rows


def archive_rows(report: Report) -> list[tuple[str, str]]:
    """The archive, and what the last turn took from it, as names and values; nothing without one."""
    archive = report.archive
    if archive is None:
        return []
    place = "in memory" if archive.path is None else f"in {archive.path}"
    now = f", {size(archive.host_bytes)} of memory now" if archive.host_bytes else ""
    return [
        (
            "archive",
            f"{archive.rows:,} positions {place}, {' and '.join(dict.fromkeys(archive.types))}, at most "
            f"{size(archive.bytes)}{now}; {size(archive.written_bytes)} written, {size(archive.read_bytes)} read",
        ),
        (
            "last recall",
            f"{report.recalled_cells:,} cells in {report.recalled} recalls, {report.copied_cells:,} of them from the "
            f"archive, in {report.recall_seconds:.2f} s",
        ),
    ]


def report_rows(report: Report) -> list[tuple[str, str]]:
    """The report as names and values, for `/stats`."""
    rows = [
        ("model", f"{report.model} ({report.arch})"),
        ("method", f"{report.method}, prefill {report.prefill}, on {report.backend}"),
        ("context", f"{report.positions:,} of {report.context:,} positions used"),
        ("cells", f"{report.cells:,} of {report.capacity:,} (budget {report.budget:,}, reserve {report.reserve:,})"),
        ("allocation", f"{report.allocation}, {report.budget_total:,} cells in all heads and layers"),
        ("KV cache", size(report.kv_bytes)),
        (
            "beside it",
            f"queries {size(report.ring_bytes)}, positions {size(report.table_bytes)}, "
            f"output matrices {size(report.wo_bytes)}"
            + (f", votes {size(report.sums_bytes)}" if report.sums_bytes else ""),
        ),
        ("evictions", f"{report.n_evictions} in {report.evict_seconds:.2f} s"),
        (
            "last prompt",
            f"{report.prefill_evictions} evictions, {report.guided_evictions} of them scored by the question",
        ),
        *archive_rows(report),
        ("peak memory", size(peak_rss_bytes())),
        *memory_rows(report.memory),
    ]
    if report.evictions:
        last = report.evictions[-1]
        rows.append(
            (
                "last eviction",
                f"at position {last.position:,}: {last.cells_before:,} to {last.cells_after:,} cells, "
                f"{last.layers} layers ({last.layers_host} through the host), {last.seconds * 1000:.0f} ms, "
                f"{size(last.bytes_moved)} moved",
            )
        )
    rows.extend(("notice", notice) for notice in report.notices)
    return rows
