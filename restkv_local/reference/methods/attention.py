"""Attention of the rows as a score: what SnapKV, TOVA and H2O add up, and two indicators of ReST-KV's ablation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..compiled import compiled
from .rows import Float64

if TYPE_CHECKING:
    from torch import Tensor

    from ..attend import Attention
    from ..inputs import ScoreInputs


def attention_sum(attention: Attention, inputs: ScoreInputs) -> Tensor:
    """[H, N - w] weighted sum of the rows; with mean_rows divided by their number."""
    import torch

    rows = torch.from_numpy(inputs.row_weights)[None, :, None]
    raw = (rows * attention.weights[:, :, : inputs.n_past]).sum(dim=1)
    return raw / inputs.n_rows if inputs.params.mean_rows else raw


def attention_max(attention: Attention, inputs: ScoreInputs) -> Tensor:
    """[H, N - w] the largest of a cell's rows, and at least the mean of these over the cells:

        m[h, j] = max_i a[h, i, j],  score[h, j] = max(m[h, j], mean_j' m[h, j'])

    DefensiveKV (Feng et al., 2025, arXiv 2510.13334): the maximum is its worst-case risk estimation, the floor its
    adaptive prior-risk correction. Theirs, in the published code: every row is average-pooled first and then scaled to
    the sum it had; the maximum is over the query heads of a group too, and the floor is the mean of that; the result is
    multiplied with the L1 length of W_o v, and the cells that hold 90 % of the mean attention come first whatever their
    score (both of CriticalKV). Ours: the scores are pooled and not the rows, as with every way to make one row of them;
    each query head has its own floor, and `reduce` "max" takes the largest of a group after the pooling; indicator
    "attention-value-norm" multiplies with the length of v (L2), and no cell comes first.
    """
    largest = attention.weights[:, :, : inputs.n_past].amax(dim=1)
    return largest.clamp(min=largest.mean(dim=-1, keepdim=True))


class AttentionSum:
    """The same of one query head. mass: [N - w] so far; others: likewise the sum of weight * (1 - a)."""

    def __init__(self, inputs: ScoreInputs, head: int) -> None:
        self.inputs = inputs
        self.mass, self.others = np.zeros(inputs.n_past), np.zeros(inputs.n_past)

    def row(self, logits: Float64, log_total: float, weight: float, top: int, rest: float) -> None:
        add_row(logits, log_total, weight, top, rest, self.mass, self.others)

    def scores(self) -> Float64:
        return self.mass / self.inputs.n_rows if self.inputs.params.mean_rows else self.mass


class AttentionMax:
    """`attention_max` of one query head. largest: [N - w] so far."""

    def __init__(self, inputs: ScoreInputs, head: int) -> None:
        self.largest = np.zeros(inputs.n_past)

    def row(self, logits: Float64, log_total: float, weight: float, top: int, rest: float) -> None:
        raise_to_row(logits, log_total, self.largest)

    def scores(self) -> Float64:
        scores: Float64 = np.maximum(self.largest, self.largest.mean())
        return scores


@compiled(reorder=True)
def raise_to_row(row: Float64, log_total: float, largest: Float64) -> None:
    """largest = the larger of it and the attention of a row."""
    for j in range(len(largest)):
        largest[j] = max(largest[j], np.exp(row[j] - log_total))


@compiled(reorder=True)
def add_row(
    row: Float64, log_total: float, weight: float, top: int, rest: float, mass: Float64, others: Float64
) -> None:
    """mass += weight * a, others += weight * (1 - a); `rest` is 1 - a of cell `top`."""
    for j in range(len(mass)):
        log_a = row[j] - log_total
        mass[j] += weight * np.exp(log_a)
        others[j] += weight * (rest if j == top else -np.expm1(log_a))
