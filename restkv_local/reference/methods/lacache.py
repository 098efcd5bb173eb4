"""LaCache (Shi et al., 2025): what the ladder keeps in this layer (restkv_local.plan.ladder)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .rows import Queryless

if TYPE_CHECKING:
    from ..inputs import Float32, ScoreInputs


def literal(inputs: ScoreInputs) -> Float32:
    """[Hk, N - w] 1 for the cells that the ladder keeps, 0 for the others."""
    p = inputs.params
    kept, _ = p.ladder.compact(p.layer, inputs.n_text, p.cursor)
    scores = np.zeros(inputs.n_text, dtype=np.float32)
    scores[kept] = 1.0
    return np.tile(scores[: inputs.n_past], (inputs.n_kv_heads, 1))


def lean(inputs: ScoreInputs, kv_head: int, out: Float32) -> None:
    """The same of one KV head."""
    p = inputs.params
    kept, _ = p.ladder.compact(p.layer, inputs.n_text, p.cursor)
    out[:] = np.isin(np.arange(inputs.n_past), kept)


REFERENCE = Queryless(literal, lean)
