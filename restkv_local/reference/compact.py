"""Stage compact: the surviving cells move together, in the order of the text."""

from __future__ import annotations

import torch
from torch import Tensor


def compact(k: Tensor, v: Tensor, pos: Tensor, indices: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the past cells `indices` and the last `window` cells of every KV head.

    k, v: [Hk, N, d]; pos: [Hk, N] ascending; indices: [Hk, C] ascending past cells, below N - window.
    Returns k, v [Hk, C + window, d] and pos [Hk, C + window]; pos still ascends.
    """
    heads, n = pos.shape
    recent = torch.arange(n - window, n, device=indices.device).expand(heads, -1)
    kept = torch.cat([indices.long(), recent], dim=1)
    rows = kept[:, :, None]
    return (
        torch.gather(k, 1, rows.expand(-1, -1, k.shape[2])),
        torch.gather(v, 1, rows.expand(-1, -1, v.shape[2])),
        torch.gather(pos, 1, kept),
    )
