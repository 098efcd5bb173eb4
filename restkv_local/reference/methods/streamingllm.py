"""StreamingLLM (Xiao et al., 2024): of the cells before the window, which is the rest of the budget, the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .rows import Queryless

if TYPE_CHECKING:
    from ..inputs import Float32, ScoreInputs


def literal(inputs: ScoreInputs) -> Float32:
    """[Hk, N - w] minus the cell's number."""
    return np.tile(-np.arange(inputs.n_past, dtype=np.float32), (inputs.n_kv_heads, 1))


def lean(inputs: ScoreInputs, kv_head: int, out: Float32) -> None:
    """The same of one KV head."""
    out[:] = -np.arange(inputs.n_past, dtype=np.float32)


REFERENCE = Queryless(literal, lean)
