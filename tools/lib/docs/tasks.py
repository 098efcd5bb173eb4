"""Tables of the evaluation's tasks, as blocks of the docs: read from the families' own tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restkv_local.eval.about import About


def ruler() -> str:
    """RULER's tasks."""
    from restkv_local.eval.ruler import ABOUT

    return _table(ABOUT)


def longbench() -> str:
    """LongBench's datasets."""
    from restkv_local.eval.longbench import ABOUT

    return _table(ABOUT)


def infinitebench() -> str:
    """InfiniteBench's tasks."""
    from restkv_local.eval.infinitebench import ABOUT

    return _table(ABOUT)


def reason() -> str:
    """The reasoning tasks."""
    from restkv_local.eval.reason import ABOUT

    return _table(ABOUT)


def _table(rows: Sequence[About]) -> str:
    lines = ["| task | what it asks | metric | data | answer, tokens |", "|---|---|---|---|---:|"]
    lines += [f"| `{row.name}` | {row.asks} | {row.metric} | {row.data} | {row.max_tokens:,} |" for row in rows]
    return "\n".join(lines)
