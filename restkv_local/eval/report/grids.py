"""Grids of one figure: methods down, budgets across, for one length and one way to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..summary import Row
from .best import standings

Key = tuple[str, int, str | None, int | None, str]


@dataclass(frozen=True)
class GridCell:
    """number: of the row that it shows; best, level: among the rows of its column (best.py)."""

    number: int
    best: bool
    level: bool


@dataclass(frozen=True)
class Grid:
    """part: kind of text or needle, "" for all of them together; full: number of the full cache's row, if measured.
    lines: a name and its cell for each budget, None where it was not measured; in the order in which they were run."""

    part: str
    context: int
    prefill: str | None
    reserve: int | None
    kv_type: str
    budgets: tuple[int | str, ...]
    full: int | None
    lines: tuple[tuple[str, tuple[GridCell | None, ...]], ...]


def grids(found: Sequence[Row], figure: str) -> list[Grid]:
    """The grids of the rows of one task and model, by part, length and prefill."""
    stands = standings(found, figure)
    by_key: dict[Key, dict[str, dict[int | str, int]]] = {}
    full: dict[tuple[str, int, str], int] = {}
    for number, row in enumerate(found):
        if figure not in row.means:
            continue
        if row.full:
            full[row.part, row.context, row.kv_type] = number
        elif row.budget is not None:
            key = (row.part, row.context, row.prefill, row.reserve, row.kv_type)
            by_key.setdefault(key, {}).setdefault(row.name, {})[row.budget] = number
    made = []
    for key, names in sorted(by_key.items(), key=lambda item: (item[0][0], item[0][1], str(item[0][2:]))):
        part, context, prefill, reserve, kv_type = key
        budgets = tuple(sorted({budget for line in names.values() for budget in line}, key=_order))
        lines = []
        for name, line in names.items():
            cells = [line.get(budget) for budget in budgets]
            shown = [None if n is None else GridCell(n, stands[n].best, stands[n].level) for n in cells]
            lines.append((name, tuple(shown)))
        yardstick = full.get((part, context, kv_type))
        made.append(Grid(part, context, prefill, reserve, kv_type, budgets, yardstick, tuple(lines)))
    return made


def _order(budget: int | str) -> tuple[bool, int, str]:
    return (isinstance(budget, str), budget if isinstance(budget, int) else 0, str(budget))
