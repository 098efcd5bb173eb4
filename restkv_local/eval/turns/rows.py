"""What is compared: ways to read a text and to ask about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...config import CELL_PAD, EvictConfig
from ...errors import ConfigError
from ..grid import Grid, Setting
from ..variant import FULL

# How a text is read: as a prefill mode does, or with cells for all of it and one eviction behind it.
EXACT = "exact"
# How a question is read: as the text goes on, by a recall before it, or with a recall in every layer.
PLAIN, TWO_PASSES, PER_LAYER = "plain", "two passes", "per layer"
# What a recall of the reference engine chooses: every position that was read (for questions), or pages of positions.
EVERYTHING, PAGES = "everything", "pages"


class Way(NamedTuple):
    """text, question: how each is read. summary: for the help text. reference: what the recalls of a row choose that
    runs on the reference engine, in torch; "" for rows of the engine."""

    text: str
    question: str
    summary: str
    reference: str = ""

    @property
    def archive(self) -> bool:
        """Whether the rows that are evicted are kept."""
        return self.question != PLAIN


WAYS = {
    FULL: Way(FULL, PLAIN, "every cell is kept"),
    "stream": Way("stream", PLAIN, "what is evicted is gone"),
    "guided": Way("guided", PLAIN, "the same, evicted by the first question"),
    "two-pass": Way("stream", TWO_PASSES, "read with stream, each question recalls before it is read"),
    "per-layer": Way("stream", PER_LAYER, "read with stream, each layer recalls while a question is read"),
    "recall": Way("recall", PER_LAYER, "text and questions are read with recall"),
    "recall-two-pass": Way("recall", TWO_PASSES, "read with recall, each question recalls before it is read"),
    "ceiling": Way(EXACT, PER_LAYER, "rows of the full cache, evicted once; asked as per-layer"),
    "ceiling-two-pass": Way(EXACT, TWO_PASSES, "the same, asked as two-pass"),
    "attended": Way("recall", PER_LAYER, "read as recall, questions see all rows (in torch, slow)", EVERYTHING),
    "pages": Way("recall", PER_LAYER, "as recall, but of pages of positions (in torch, slow)", PAGES),
}
DEFAULT = (FULL, "stream", "guided", "two-pass", "per-layer", "recall", "ceiling")


@dataclass(frozen=True)
class Row:
    """A way with its setting."""

    way: Way
    setting: Setting


def rows(
    grid: Grid, names: Sequence[str], seed: int, n_ctx: int, answering: Mapping[str, Any] | None = None
) -> list[Row]:
    """The full cache, which is the yardstick, then every way, method and budget. n_ctx: positions that are needed: the
    rows of a ceiling are read with cells for all of them. answering: settings of rows with an archive, how answers
    recall; those that are not the defaults stand in the row's name. Raises ConfigError for what cannot be."""
    (full,) = [setting for setting in grid.settings(seed) if setting.full]
    found = [Row(WAYS[FULL], full)]
    default = EvictConfig()
    recalling = {name: value for name, value in (answering or {}).items() if value != getattr(default, name)}
    said = "".join(f", {name.replace('_', ' ')} {value}" for name, value in recalling.items())
    for name in names:
        way = WAYS[name]
        if way.text == FULL:
            continue
        for variant in grid.variants:
            for budget in grid.budgets:
                changes: dict[str, Any] = {"prefill": _prefill(way)}
                if way.archive:
                    changes |= {"archive": "ram", **recalling}
                evict = EvictConfig().with_(
                    seed=seed, unverified=grid.unverified, method=variant.method, budget=budget,
                    reserve=_reserve(way, grid, budget, n_ctx), **variant.changes, **changes,
                )  # fmt: skip
                title = name if variant.name == default.method else f"{name}, {variant.name}"
                title += said if way.archive else ""
                found.append(Row(way, Setting(title, evict, grid.kv_type)))
    return found


def _prefill(way: Way) -> str:
    """The mode that an engine is made with: that of the question where a layer recalls for it."""
    if way.question == PER_LAYER:
        return "recall"
    return "stream" if way.text == EXACT else way.text


def _reserve(way: Way, grid: Grid, budget: int | str, n_ctx: int) -> int | None:
    if way.text != EXACT:
        return grid.reserve
    if not isinstance(budget, int):
        raise ConfigError("a ceiling has cells for the whole text: give --budgets in cells, or leave out its rows")
    return max(n_ctx - budget, 0) + CELL_PAD
