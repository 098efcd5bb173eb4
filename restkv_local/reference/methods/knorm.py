"""L2-norm (Devoto et al., 2024): short keys are kept, as they draw attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .rows import Queryless, press

if TYPE_CHECKING:
    from ..inputs import Float32, ScoreInputs


def literal(inputs: ScoreInputs) -> Float32:
    """[Hk, N - w] minus the length of the key."""
    import torch

    k = torch.from_numpy(inputs.k[:, : inputs.n_past]).double()
    scores: Float32 = (-k.norm(dim=-1)).float().numpy()
    return scores


def lean(inputs: ScoreInputs, kv_head: int, out: Float32) -> None:
    """The same of one KV head."""
    k = inputs.k[kv_head, : inputs.n_past].astype(np.float32)
    out[:] = -np.sqrt(np.einsum("jd,jd->j", k, k, dtype=np.float64))


REFERENCE = Queryless(literal, lean, published={"kvpress_KnormPress": press})
