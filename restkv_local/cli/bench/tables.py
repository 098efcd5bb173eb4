"""The benchmark's table."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ...plan.machine import size


def speed_table(result: dict[str, Any]) -> Table:
    """One row per context; medians, with min to max of the ratios."""
    table = Table(title=f"{result['settings']['model']} on {result['device']['cpu']}")
    for name in (
        "context", "decode", "stock", "faster", "prefill", "stock", "faster", "eviction", "peak memory", "stock fill"
    ):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        table.add_row(
            f"{row['context']:,}",
            _number(row["decode_ms"], "{:.1f} ms"),
            _number(row["stock_decode_ms"], "{:.1f} ms"),
            _ratio(row, "decode_ratio"),
            _number(row["prefill_tokens_per_s"], "{:.0f} tok/s"),
            _number(row["stock_prefill_tokens_per_s"], "{:.0f} tok/s"),
            _ratio(row, "prefill_ratio"),
            _number(row["evict_share"], "{:.2%}"),
            size(row["peak_rss_bytes"]),
            row["stock_fill"] or "-",
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _ratio(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    return f"{row[name]:.2f}x ({row[name + '_min']:.2f}-{row[name + '_max']:.2f})"
