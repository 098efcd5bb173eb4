"""ReST-KV's score with memory in proportion to the number of cells (numba); removal.py says what it is.

W_o enters through the triangular factor R of each head's block: ||W x|| = ||R x||.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .compiled import compiled
from .inputs import ODDS_MAX, Float32, ScoreInputs
from .methods.attention import AttentionSum
from .methods.rows import Float64

# Cells projected at a time: bounds the scratch, whatever the number of cells.
TILE = 4096
TINY = float(np.finfo(np.float64).tiny)


class ScoreAfter(AttentionSum):
    """Odds of the averaged attention times the distance of each value to the averaged output."""

    def __init__(self, inputs: ScoreInputs, head: int) -> None:
        super().__init__(inputs, head)
        self.v = inputs.v[head // inputs.group, : inputs.n_past].astype(np.float32)
        self.factor = factor_wo(inputs, head)

    def scores(self) -> Float64:
        mass, others, v = self.mass, self.others, self.v
        output = weighted_sum(mass, v)
        distance = np.empty(len(v))
        for start in range(0, len(v), TILE):
            tile = project(output - v[start : start + TILE], self.factor)
            distance[start : start + TILE] = np.sqrt(np.einsum("jd,jd->j", tile, tile))
        saturated = others * ODDS_MAX <= mass
        for j in np.flatnonzero(saturated):  # at most one
            without = mass.copy()
            without[j] = 0.0
            output = weighted_sum(without, v) / others[j] if others[j] > 0.0 else np.zeros(v.shape[1])
            distance[j] = np.linalg.norm(project(output - v[j], self.factor)) / ODDS_MAX
        if self.inputs.params.use_wo:
            distance **= self.inputs.params.tau
        odds = np.where(saturated, ODDS_MAX, mass / np.where(saturated, 1.0, others))
        scores: Float64 = odds * distance
        return scores


class ScoreBefore:
    """One metric per query and cell, added up over the rows."""

    def __init__(self, inputs: ScoreInputs, head: int) -> None:
        self.use_norm = inputs.params.use_norm
        values = inputs.v[head // inputs.group].astype(np.float32)
        self.projected = project(values, factor_wo(inputs, head))
        self.total = np.zeros(inputs.n_past)

    def row(self, logits: Float64, log_total: float, weight: float, top: int, rest: float) -> None:
        if weight > 0.0:
            output = row_output(logits, log_total, self.projected)
            norm = float(np.linalg.norm(output)) if self.use_norm else 1.0
            add_metric(logits, log_total, self.projected, output, weight, norm, top, rest, self.total)

    def scores(self) -> Float64:
        return self.total


def factor_wo(inputs: ScoreInputs, h: int) -> Float64 | None:
    """R of the head's block of the output projection, so that ||W x|| = ||R x||; no square is ever expanded."""
    if inputs.wo is None:
        return None
    d = inputs.head_size
    block = inputs.wo[:, h * d : (h + 1) * d].astype(np.float64)
    return np.asarray(np.linalg.qr(block, mode="r"))


def project(x: npt.NDArray[Any], factor: Float64 | None) -> Float64:
    """[n, d] -> [n, r] by the factor of W, or x itself in float64."""
    return x.astype(np.float64) if factor is None else x.astype(np.float64) @ factor.T


@compiled(reorder=True)
def weighted_sum(mass: Float64, v: Float32) -> Float64:
    out = np.zeros(v.shape[1])
    for j in range(len(mass)):
        for c in range(len(out)):
            out[c] += mass[j] * np.float64(v[j, c])
    return out


@compiled(reorder=True)
def row_output(row: Float64, log_total: float, projected: Float64) -> Float64:
    """Projected attention output of one row, over all cells."""
    out = np.zeros(projected.shape[1])
    for j in range(len(row)):
        a = np.exp(row[j] - log_total)
        for c in range(len(out)):
            out[c] += a * projected[j, c]
    return out


@compiled(reorder=True)
def add_metric(
    row: Float64,
    log_total: float,
    projected: Float64,
    output: Float64,
    weight: float,
    norm: float,
    top: int,
    rest: float,
    total: Float64,
) -> None:
    """total += weight * odds * distance / norm of one row (metric before aggregation)."""
    inverse = 1.0 / norm if norm > 0.0 else np.inf
    for j in range(len(total)):
        log_a = row[j] - log_total
        a = np.exp(log_a)
        others = rest if j == top else -np.expm1(log_a)
        square = 0.0
        if others * ODDS_MAX > a:
            for c in range(len(output)):
                square += (output[c] - projected[j, c]) ** 2
            total[j] += weight * a / others * np.sqrt(square) * inverse
        else:  # the cell is its own output: compare it with the output of the others
            for c in range(len(output)):
                without = 0.0
                for i in range(len(row)):
                    if i != j and others > 0.0:
                        without += np.exp(row[i] - log_total) * projected[i, c]
                square += (without / max(others, TINY) - projected[j, c]) ** 2
            total[j] += weight * np.sqrt(square) * inverse
