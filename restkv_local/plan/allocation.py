"""How a budget is shared out: over the layers (pyramid) or over the KV heads of a layer (ada). Pure functions.

Two forms of each. The published ones are what PyramidKV, AdaKV and ReST-KV print in their code, with their rounding:
score functions reproduce them. Those that the engine uses give totals that are exact.

Past cells are the cells before the window; a budget is past cells plus the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..config import ADA_MOST, EvictConfig
from ..errors import ConfigError


@dataclass(frozen=True)
class Shares:
    """How many cells per KV head each evicting layer may keep, and needs rows for. Cells include the window.

    layers: [n_layer] budgets. rows: most cells of any layer or head that survive an eviction. first: cells that hold a
    new text before the first eviction, reserve not counted. total: budgets of all KV heads of all layers together.
    """

    layers: tuple[int, ...]
    rows: int
    first: int
    total: int


def share_out(config: EvictConfig, budget: int, n_layer: int, n_head_kv: int) -> Shares:
    """The plan of a cache with these settings. n_layer, n_head_kv: evicting layers, KV heads of each.

    Raises ConfigError when the budget is too small, or there is one layer only for a pyramid.
    """
    total = budget * n_layer * n_head_kv
    if config.allocation == "pyramid":
        # where the window is what the sinks leave of a layer's budget, they leave something
        least = max(config.window, config.sinks + 1) if config.traits.window == "rest" else config.window
        layers = pyramid_budgets(budget, least, n_layer, config.beta)
        return Shares(tuple(layers), max(layers), min(layers), total)
    rows = budget
    if config.allocation == "ada":
        # a head cannot have more than all heads of its layer together
        rows = min(int(ADA_MOST * budget), config.window + n_head_kv * (budget - config.window))
    return Shares((budget,) * n_layer, rows, budget, total)


Rows = Sequence[npt.NDArray[np.float32]] | npt.NDArray[np.float32]


def pyramid_published(budget: int, window: int, n_cells: int, n_layer: int, beta: int, *, flat: bool) -> list[int]:
    """[n_layer] past cells of each layer, in integer arithmetic; the total may pass n_layer * (budget - window).

    The last layer's share is (budget - window) // beta, unless that asks for more past cells of the first layer than
    there are. With fewer cells than the budget nothing goes. flat: PyramidKV gives every layer the same while there
    are fewer than 2 * (budget - window) cells; ReST-KV's pyramid does not. Sources: PyramidKV (Cai et al., 2024) and
    ReST-KV (ICLR 2026), as in the published code.
    """
    _check_pyramid(n_layer, beta)
    mean, past = budget - window, n_cells - window
    if n_cells < budget:
        return [past] * n_layer
    if flat and n_cells < 2 * mean:
        return [mean] * n_layer
    least = mean // beta
    most = 2 * mean - least
    if most >= past:
        most, least = past, 2 * mean - past
    step = (most - least) // (n_layer - 1)
    return [most - layer * step for layer in range(n_layer)]


def pyramid_budgets(budget: int, window: int, n_layer: int, beta: int) -> list[int]:
    """[n_layer] budgets, window included, falling in a straight line; their sum is exactly n_layer * budget.

    The last layer gets (budget - window) // beta past cells, at least one, and the first one the complement to
    2 * (budget - window), so that layers l and n_layer - 1 - l together have two plain budgets.
    """
    _check_pyramid(n_layer, beta)
    mean = budget - window
    if mean < 1:
        raise ConfigError(f"a pyramid needs a budget above the window of {window}; got {budget}")
    least = max(1, mean // beta)
    fall = 2 * mean - 2 * least  # first layer minus last
    past = [mean] * n_layer
    for layer in range(n_layer // 2):
        past[layer] = 2 * mean - least - fall * layer // (n_layer - 1)
        past[n_layer - 1 - layer] = 2 * mean - past[layer]
    return [window + cells for cells in past]


def _check_pyramid(n_layer: int, beta: int) -> None:
    if n_layer < 2:
        raise ConfigError("a pyramid needs at least two layers; use allocation 'uniform'")
    if beta < 1:
        raise ConfigError(f"beta must be at least 1; got {beta}")


def ada_published(rows: Rows, mean: int, floor: float, normalize: bool = True) -> list[int]:
    """[heads] past cells of each head of a layer; rounding may move the total away from heads * mean.

    rows: [heads][L] smoothed scores, high means keep. floor: the part of every head's plain share that it keeps.
    normalize: a head whose scores are spread thin gets less. Source: AdaKV (Feng et al., 2024) as in the published
    code of ReST-KV. With fewer than `mean` cells nothing goes.
    """
    lengths = [len(row) for row in rows]
    if mean > min(lengths):
        return lengths
    counts = _global_counts(rows, mean, normalize, lengths)
    fixed = int(mean * floor)
    return [min(length, round(n * (1.0 - floor) + fixed)) for n, length in zip(counts, lengths, strict=True)]


def ada_shares(rows: Rows, mean: int, floor: float, most: int | None = None, normalize: bool = True) -> list[int]:
    """[heads] past cells of each head of a layer; their sum is exactly heads * mean, or all cells if there are fewer.

    As `ada_published`, for rows of any lengths, with three differences: no head gets more than `most` (None: no limit),
    what rounding leaves over goes one cell at a time to the head that is furthest below its share, and scores that may
    be negative (keydiff, knorm) compete as they are: the part that a sum holds means nothing among them.
    """
    normalize = normalize and not any(np.any(np.asarray(row) < 0.0) for row in rows)
    high = [min(len(row), len(row) if most is None else most) for row in rows]
    total = min(mean * len(rows), sum(high))
    counts = _global_counts(rows, mean, normalize, high)
    shares = [n * (1.0 - floor) + mean * floor for n in counts]
    past = [min(int(share), limit) for share, limit in zip(shares, high, strict=True)]
    while sum(past) < total:
        head = max((h for h in range(len(past)) if past[h] < high[h]), key=lambda h: (shares[h] - past[h], -h))
        past[head] += 1
    return past


def _global_counts(rows: Rows, mean: int, normalize: bool, high: Sequence[int]) -> list[int]:
    """How many of the heads * mean largest scores of a layer lie in each head, at most high[h]; ties: lower head."""
    offers = []
    for row, limit in zip(rows, high, strict=True):
        falling = -np.sort(-np.asarray(row, dtype=np.float64))
        total = falling.sum()
        scale = falling[:mean].sum() / total if normalize and total != 0.0 else 1.0
        offers.append(falling[:limit] * scale)
    scores = np.concatenate(offers)
    heads = np.repeat(np.arange(len(offers)), [len(offer) for offer in offers])
    best = np.argsort(-scores, kind="stable")[: mean * len(offers)]
    return [int(n) for n in np.bincount(heads[best], minlength=len(offers))]


def pad_sets(sets: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """[sets, longest] int32: sets of different sizes in one array, -1 behind the shorter ones."""
    padded = np.full((len(sets), max(len(one) for one in sets)), -1, dtype=np.int32)
    for row, one in zip(padded, sets, strict=True):
        row[: len(one)] = one
    return padded
