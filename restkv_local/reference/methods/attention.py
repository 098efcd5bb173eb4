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


class AttentionSum:
    """The same of one query head. mass: [N - w] so far; others: likewise the sum of weight * (1 - a)."""

    def __init__(self, inputs: ScoreInputs, head: int) -> None:
        self.inputs = inputs
        self.mass, self.others = np.zeros(inputs.n_past), np.zeros(inputs.n_past)

    def row(self, logits: Float64, log_total: float, weight: float, top: int, rest: float) -> None:
        add_row(logits, log_total, weight, top, rest, self.mass, self.others)

    def scores(self) -> Float64:
        return self.mass / self.inputs.n_rows if self.inputs.params.mean_rows else self.mass


@compiled(reorder=True)
def add_row(
    row: Float64, log_total: float, weight: float, top: int, rest: float, mass: Float64, others: Float64
) -> None:
    """mass += weight * a, others += weight * (1 - a); `rest` is 1 - a of cell `top`."""
    for j in range(len(mass)):
        log_a = row[j] - log_total
        mass[j] += weight * np.exp(log_a)
        others[j] += weight * (rest if j == top else -np.expm1(log_a))
