"""LaCache's ladder: which cells a layer keeps, from counts alone. Pure functions; native/methods/lacache.cpp agrees.

The text after the sinks is cut into rungs of `keep + drop` cells. Of each rung a layer keeps `keep` consecutive cells,
and the next layer those one cell further on. The cursor is where the next compaction goes on; when no room is left
before the last `tail` cells, it starts over at the sinks and thins what is left again.
Source: LaCache (Shi et al., 2025) and its published code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

Cells = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ladder:
    """start: first cells that are never dropped; tail: last cells, likewise. budget: cells that a compaction leaves."""

    n_layers: int
    budget: int
    start: int
    tail: int
    keep: int
    drop: int

    @property
    def rung(self) -> int:
        """Cells of a rung."""
        return self.keep + self.drop

    def compact(self, layer: int, n: int, cursor: int) -> tuple[Cells, int]:
        """The cells of n that `layer` keeps, ascending, exactly `budget` when there are more; and the new cursor.

        As published, but the last rung is shorter where a whole one would drop too much; and when one pass from the
        sinks is not enough, another follows.
        """
        cells = np.arange(n, dtype=np.int64)
        cursor = max(cursor, self.start)
        while len(cells) > self.budget:
            excess = len(cells) - self.budget
            rungs = min(max(self.budget - cursor - self.tail, 0) // self.keep, -(-excess // self.drop))
            last = min(excess - (rungs - 1) * self.drop, self.drop) if rungs else 0
            sizes = [self.drop] * (rungs - 1) + [last] if rungs else []
            cells = _thin(cells, layer, cursor, self.keep, sizes)
            cursor = self.start if len(cells) > self.budget else cursor + rungs * self.keep
        return cells, cursor

    def compact_published(self, layer: int, n: int, cursor: int, budget: int) -> tuple[Cells, int]:
        """As the published code does: whole rungs, so that up to drop - 1 cells fewer than `budget` may be left.

        budget: `budget` plus drop // 2, which the published code adds at its first compaction.
        Raises ConfigError where the published code leaves the cells that there are.
        """
        cells, cursor = np.arange(n, dtype=np.int64), max(cursor, self.start)
        excess, most = n - budget, max(budget - cursor - self.tail, 0) // self.keep
        if excess <= most * self.drop:
            rungs = max(-(-excess // self.drop), 0)
            return _thin(cells, layer, cursor, self.keep, [self.drop] * rungs), cursor + rungs * self.keep
        cells = _thin(cells, layer, cursor, self.keep, [self.drop] * most)
        excess -= most * self.drop
        strides = -(-excess // ((budget - self.start - self.tail) // self.keep * self.drop))
        rung = self.rung + (strides - 1) * (self.rung - 1)
        drop = rung - self.keep
        rungs = -(-excess // drop)
        first = self.start + rung * np.arange(rungs)[:, None] + layer % (drop + 1)
        kept = (first + strides * np.arange(self.keep)).reshape(-1)
        end = self.start + rungs * rung
        if end > len(cells) or kept.max(initial=0) >= len(cells):
            raise ConfigError(f"the published ladder leaves its {len(cells)} cells; raise the budget")
        thinned = np.concatenate([cells[: self.start], cells[kept], cells[end:]])
        return thinned, self.start + rungs * self.keep


def _thin(cells: Cells, layer: int, cursor: int, keep: int, drops: list[int]) -> Cells:
    """One rung per entry of `drops`, from cursor on; everything before and after stays."""
    parts = [cells[:cursor]]
    for drop in drops:
        first = cursor + layer % (drop + 1)
        parts.append(cells[first : first + keep])
        cursor += keep + drop
    return np.concatenate([*parts, cells[cursor:]])


def plan_ladder(
    n_layers: int, budget: int, window: int, start: int, span: int | None = None, overlap: int = 0
) -> Ladder:
    """The ladder of a model with n_layers evicting layers.

    budget: cells that are left. window: last cells that must stay, besides the last n_layers. start: sinks. span:
    layers in which a cell survives a pass; None: half of them. overlap: layers that neighbouring rungs share.
    Raises ConfigError for settings that drop nothing or do not fit the budget.
    """
    span = max(n_layers // 2, 1) if span is None else span
    if n_layers < 2 or not 0 <= overlap < span < n_layers:
        raise ConfigError(
            f"a ladder over {n_layers} layers needs a span below that and an overlap below the span; "
            f"got span {span} and overlap {overlap}"
        )
    rung = 1 - (span - n_layers) // (span - overlap)
    keep = min(-(-span // (span - overlap)), rung)
    if keep == rung:
        raise ConfigError(
            f"a ladder of span {span} and overlap {overlap} over {n_layers} layers drops nothing; lower the overlap"
        )
    tail = max(n_layers, window)
    if budget < start + tail + rung:
        raise ConfigError(
            f"the ladder needs a budget of at least {start + tail + rung}: {start} sinks, the last {tail} cells and "
            f"one rung; got {budget}"
        )
    return Ladder(n_layers, budget, start, tail, keep, rung - keep)
