"""Cells of a table, and how a figure is written."""

from __future__ import annotations

from dataclasses import dataclass

from ..stats import Mean


@dataclass(frozen=True)
class Cell:
    """text: what stands there; number: aligned to the right; strong: the best of its group."""

    text: str
    number: bool = False
    strong: bool = False


def mean_text(mean: Mean | None, *, sign: bool = False) -> str:
    """A mean and its 95 % interval."""
    if mean is None:
        return "-"
    form = "+.3f" if sign else ".3f"
    if mean.low is None or mean.high is None:
        return f"{mean.mean:{form}}"
    return f"{mean.mean:{form}} ({mean.low:{form}} to {mean.high:{form}})"
