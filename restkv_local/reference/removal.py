"""ReST-KV's score in torch: how much the output changes when a cell goes, and the softmax renormalises."""

from __future__ import annotations

import torch
from torch import Tensor

from .attend import Attention, repeat_heads
from .inputs import ODDS_MAX, ScoreInputs


def score_after(attention: Attention, inputs: ScoreInputs) -> Tensor:
    """ReST-KV, metric after aggregation: odds of the averaged attention times the distance to the averaged output.

    s_j = abar_j / (1 - abar_j) * ||W (obar - v_j)||^tau, obar = sum of abar_j v_j over the past cells only, not
    divided by their mass. tau acts with W only; use_norm is ignored. Returns [H, N - w] float64.
    """
    past = inputs.n_past
    rows = torch.from_numpy(inputs.row_weights)[None, :, None]
    abar = (rows * attention.weights[:, :, :past]).sum(dim=1)
    others = (rows * attention.others[:, :, :past]).sum(dim=1)
    v = repeat_heads(torch.from_numpy(inputs.v).double(), inputs.group)[:, :past]
    scores = []
    for h in range(inputs.n_heads):
        distance = removal_distance(abar[h], others[h], v[h], h, inputs)
        if inputs.params.use_wo:
            distance = distance**inputs.params.tau
        scores.append(odds(abar[h], others[h]) * distance)
    return torch.stack(scores)


def score_before(attention: Attention, inputs: ScoreInputs) -> Tensor:
    """ReST-KV, metric before aggregation: one score per query and cell, then the average over the rows.

    m_ij = a_ij / (1 - a_ij) * ||W (o_i - v_j)||, o_i over all N cells, divided by ||W o_i|| with use_norm; tau is
    ignored. Returns [H, N - w] float64.
    """
    past = inputs.n_past
    v = repeat_heads(torch.from_numpy(inputs.v).double(), inputs.group)
    weights, others = attention.weights, attention.others
    total = torch.zeros(inputs.n_heads, past, dtype=torch.float64)
    for h in range(inputs.n_heads):
        for i, row_weight in enumerate(inputs.row_weights):
            if row_weight == 0.0:
                continue  # no say, not even with an infinite metric
            distance = removal_distance(weights[h, i], others[h, i], v[h], h, inputs)[:past]
            metric = odds(weights[h, i, :past], others[h, i, :past]) * distance
            if inputs.params.use_norm:
                metric = metric / project(weights[h, i] @ v[h], h, inputs).norm(dim=-1)
            total[h] += row_weight * metric
    return total


def project(x: Tensor, head: int, inputs: ScoreInputs) -> Tensor:
    """[..., d] -> [..., c]: the head's block of the output projection, or x itself without one."""
    if inputs.wo is None:
        return x
    d = inputs.head_size
    return x @ torch.from_numpy(inputs.wo[:, head * d : (head + 1) * d]).double().T


def is_saturated(a: Tensor, others: Tensor) -> Tensor:
    """Where a cell holds so much of the attention that a / (1 - a) would pass ODDS_MAX."""
    return others * ODDS_MAX <= a


def odds(a: Tensor, others: Tensor) -> Tensor:
    """a / (1 - a), at most ODDS_MAX."""
    saturated = is_saturated(a, others)
    return torch.where(saturated, ODDS_MAX, a / torch.where(saturated, 1.0, others))


def removal_distance(a: Tensor, others: Tensor, v: Tensor, head: int, inputs: ScoreInputs) -> Tensor:
    """[n] ||W (o - v_j)|| for a [n] and v [n, d], o = sum of a_j v_j.

    A saturated cell is its own output, and o - v_j has no digits left. It equals (1 - a_j) (o_without_j - v_j), with
    o_without_j the output that the other cells would give; there 1 - a_j is held at 1 / ODDS_MAX, as in the odds, so
    that the score is the change of the output as for any other cell.
    """
    distance: Tensor = project(a @ v - v, head, inputs).norm(dim=-1)
    for j in torch.nonzero(is_saturated(a, others))[:, 0].tolist():
        rest = a.clone()
        rest[j] = 0.0
        without = rest @ v / others[j] if others[j] > 0.0 else torch.zeros_like(v[j])
        distance[j] = project(without - v[j], head, inputs).norm() / ODDS_MAX
    return distance
