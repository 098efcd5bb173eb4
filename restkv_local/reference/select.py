"""Stage select: which past cells survive."""

from __future__ import annotations

import numpy as np

from ..plan.allocation import ada_published, ada_shares, pad_sets
from .inputs import Float32, Int32, ScoreInputs


def reduce_heads(smoothed: Float32, inputs: ScoreInputs) -> Float32:
    """One score per set: [H, L] as it is, or [Hk, L], mean or maximum over the query heads of each KV head."""
    if inputs.params.reduce is None:
        return smoothed
    groups = smoothed.reshape(inputs.n_kv_heads, inputs.group, -1)
    one: Float32
    if inputs.params.reduce == "max":
        one = groups.max(axis=1)
    else:
        one = groups.mean(axis=1, dtype=np.float64).astype(np.float32)
    return one


def share(smoothed: Float32) -> Float32:
    """[H, L], every row the mean over all query heads: a method that keeps one set per layer."""
    mean = smoothed.mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.tile(mean, (len(smoothed), 1))


def select(scores: Float32, n_keep: int) -> Int32:
    """[sets, n_keep] int32: the n_keep largest of each row of scores [sets, L], ties to the lower cell, ascending."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    return np.sort(order[:, :n_keep], axis=-1).astype(np.int32)


def keep(smoothed: Float32, inputs: ScoreInputs) -> Int32:
    """Sets [sets, C] int32 that survive, of smoothed scores [H, L]: per query head, or per KV head with `reduce`.

    With allocation "ada" the sets have different sizes; -1 pads the shorter ones.
    """
    rows = reduce_heads(smoothed, inputs)
    if not inputs.params.ada:
        return select(rows, inputs.n_keep)
    return pad_sets([select(row[None], n)[0] for row, n in zip(rows, head_shares(rows, inputs), strict=True)])


def head_shares(rows: Float32, inputs: ScoreInputs) -> list[int]:
    """[sets] past cells of every head with allocation "ada", from one row of scores per set [sets, L]."""
    p = inputs.params
    mean = p.budget - p.window
    if p.allocation == "adakv":
        return ada_published(rows, mean, p.floor, p.normalize)
    return ada_shares(rows, mean, p.floor, p.most, p.normalize)
