"""KeyDiff (Park et al., 2025): keys that point away from the mean of the unit keys are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..compiled import compiled
from .rows import Queryless, press

if TYPE_CHECKING:
    from ..inputs import Float32, ScoreInputs

TINY = 1e-12  # a key of length 0 points nowhere


def literal(inputs: ScoreInputs) -> Float32:
    """[Hk, N - w] minus the cosine between a key and the mean of the unit keys, without those of a guide."""
    import torch

    k = torch.from_numpy(inputs.k[:, : inputs.n_text]).double()
    unit = torch.nn.functional.normalize(k, dim=-1)
    cosine = torch.nn.functional.cosine_similarity(unit, unit.mean(dim=1, keepdim=True), dim=-1)
    scores: Float32 = (-cosine)[:, : inputs.n_past].float().numpy()
    return scores


def lean(inputs: ScoreInputs, kv_head: int, out: Float32) -> None:
    """The same of one KV head."""
    angle_row(inputs.k[kv_head, : inputs.n_text].astype(np.float32), out)


@compiled(reorder=True)
def angle_row(keys: Float32, out: Float32) -> None:
    """out[j] = minus the cosine of key j and the mean of the unit keys; keys [n, d], out the first of them."""
    n, d = keys.shape
    mean = np.zeros(d)
    length = np.empty(n)
    for j in range(n):
        square = 0.0
        for c in range(d):
            square += np.float64(keys[j, c]) ** 2
        length[j] = max(np.sqrt(square), TINY)
        for c in range(d):
            mean[c] += keys[j, c] / length[j]
    norm = max(np.sqrt(np.sum(mean * mean)), TINY)
    for j in range(len(out)):
        dot = 0.0
        for c in range(d):
            dot += keys[j, c] * mean[c]
        out[j] = np.float32(-dot / (length[j] * norm))


REFERENCE = Queryless(literal, lean, published={"kvpress_KeyDiffPress": press})
