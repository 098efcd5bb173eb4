"""What queries look at: the largest attention that any head pays to a position. A design of our own."""

from __future__ import annotations

import torch
from torch import Tensor

from .cache import LayerCache


def largest_attention(
    weights: Tensor, cache: LayerCache, q: Tensor, q_pos: Tensor, *, attn_scale: float, softcap: float,
    sinks: Tensor | None,
) -> None:  # fmt: skip
    """Raise weights [n], by position, to the attention of the queries q [heads, r, d], at the positions q_pos [r], to
    the cells of a layer. attn_scale, softcap, sinks: the model's own attention."""
    group = len(q) // len(cache.pos)
    for head in range(len(q)):
        pos, k = cache.pos[head // group], cache.k[head // group]
        z = q[head] @ k.T * attn_scale
        if softcap:
            z = softcap * torch.tanh(z / softcap)
        z = z.masked_fill((pos[None, :] < 0) | (pos[None, :] > q_pos[:, None]), -torch.inf)
        if sinks is not None:
            z = torch.cat([z, sinks[head].expand(len(z), 1)], dim=1)
        attention = torch.softmax(z, dim=1)[:, : len(pos)].amax(dim=0)
        here = (pos >= 0) & (pos < len(weights))
        weights[pos[here]] = torch.maximum(weights[pos[here]], attention[here])
