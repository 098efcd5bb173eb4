"""Whether a row is the best at its memory, or told apart from the best at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..stats import Mean, difference_of
from ..summary import LOWER, Row


@dataclass(frozen=True)
class Standing:
    """best: the best mean of its group. difference: paired, to the best row; None where there are no pairs."""

    best: bool
    difference: Mean | None

    @property
    def level(self) -> bool:
        """Best, or not told apart from it: the 95 % interval of the difference holds 0."""
        if self.best:
            return True
        mean = self.difference
        return mean is not None and mean.low is not None and mean.high is not None and mean.low <= 0 <= mean.high

    @property
    def mark(self) -> str:
        """For a table."""
        return "best" if self.best else "level" if self.level else ""


def standings(rows: Sequence[Row], figure: str) -> dict[int, Standing]:
    """By the number of the row: those compete that share model, task, part, context, prefill and memory."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, row in enumerate(rows):
        if not row.full and figure in row.means:
            key = (row.model, row.task, row.part, row.context, row.prefill, row.budget, row.reserve, row.kv_type)
            groups.setdefault(key, []).append(number)
    sign = -1 if figure in LOWER else 1
    found: dict[int, Standing] = {}
    for group in groups.values():
        best = max(group, key=lambda number: sign * rows[number].means[figure].mean)
        theirs = rows[best].values[figure]
        for number in group:
            ours = rows[number].values[figure]
            common = [sample for sample in ours if sample in theirs]
            pairs = [ours[sample] for sample in common], [theirs[sample] for sample in common]
            found[number] = Standing(number == best, difference_of(*pairs) if common else None)
    return found
