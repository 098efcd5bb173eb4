"""One eviction of one layer's cache with the stages of the reference."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from ..config import EvictConfig
from ..errors import EvictionError
from ..plan.allocation import ada_shares
from .cache import LayerCache
from .inputs import Float32
from .params import ScoreParams
from .scores import score
from .select import select

# Settings that a score is told as they are; a budget is shared out here, where all heads and layers are known.
_SCORING = {field.name for field in fields(ScoreParams)} & {field.name for field in fields(EvictConfig)} - {
    "budget", "allocation", "beta", "floor"
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Index of a layer among the evicting ones, their number, and where the ladder's last compaction stopped."""

    layer: int = 0
    n_layers: int = 1
    cursor: int = 0


def survivors(
    cache: LayerCache,
    config: EvictConfig,
    *,
    budget: int,
    own: int,
    rows: int,
    n_guide: int,
    layer: int,
    place: Place,
    wo: torch.Tensor,
    attn_scale: float,
    softcap: float,
    sinks: torch.Tensor | None,
) -> list[torch.Tensor]:
    """[kv_heads] cells that stay, ascending; the last n_guide cells are a guide and never among them.

    budget: the plain one; own: that of this layer; rows: most cells of a head with allocation "ada". layer: in the
    model. place: among the evicting layers, of a ladder. wo: [n_embd, heads * d]. attn_scale, softcap, sinks:
    the model's own attention. Raises EvictionError when no query of the window is remembered.
    """
    window = config.window_cells(own)
    plain = config.window_cells(budget)
    n_doc = cache.cells - n_guide
    tail = torch.arange(n_doc - window, n_doc).expand(cache.pos.shape[0], -1)
    if config.traits.votes:
        chosen = select(cache.votes[:, : n_doc - window].float().numpy(), budget - window)
        return list(torch.cat([torch.from_numpy(chosen.astype(np.int64)), tail], dim=1))
    q = cache.window_queries(window, even=config.traits.pools)
    if q.shape[1] == 0:
        raise EvictionError("no query of the window is remembered; decode at least two tokens before an eviction")
    common: dict[str, Any] = {name: getattr(config, name) for name in _SCORING} | {
        "n_tail": window + n_guide, "window": window, "attn_scale": attn_scale, "softcap": softcap
    }
    if config.allocation == "uniform":
        ladder: dict[str, Any] = {}
        if config.traits.ladder:
            layer = place.layer
            ladder = {"num_layers": place.n_layers, "cursor": place.cursor, "start_size": config.sinks}
        indices = score(
            q.numpy(), cache.k.numpy(), cache.v.numpy(), wo.numpy(), pos=cache.pos.numpy(),
            sinks=None if sinks is None else sinks.numpy(), budget=budget, layer=layer, **common, **ladder,
        )[2]  # fmt: skip
        return list(torch.cat([torch.from_numpy(np.asarray(indices, dtype=np.int64)), tail], dim=1))

    n_kv = cache.pos.shape[0]
    group, d = q.shape[0] // n_kv, q.shape[2]
    past: list[torch.Tensor] = []
    scores: list[Float32] = []
    for h in range(n_kv):
        first = cache.cells - cache.held[h]
        n_past = cache.cells - first - n_guide - window
        if config.allocation == "pyramid" and n_past <= own - window:
            past.append(torch.arange(first, first + max(0, n_past)))  # the layer goes on filling its budget
            continue
        heads = slice(h * group, (h + 1) * group)
        _, smoothed, indices, _, _ = score(
            q[heads].numpy(), cache.k[h : h + 1, first:].numpy(), cache.v[h : h + 1, first:].numpy(),
            wo[:, h * group * d : (h + 1) * group * d].numpy(), pos=cache.pos[h : h + 1, first:].numpy(),
            sinks=None if sinks is None else sinks[heads].numpy(), budget=budget - plain + window, layer=layer,
            n_select=own - window if config.allocation == "pyramid" else None, head_kv=h, **common,
        )  # fmt: skip
        past.append(first + torch.from_numpy(np.asarray(indices[0], dtype=np.int64)))
        one = smoothed.max(axis=0) if config.reduce == "max" else smoothed.mean(axis=0, dtype=np.float64)
        scores.append(one.astype(np.float32))
    if config.allocation == "ada":
        for h, n in enumerate(ada_shares(scores, budget - window, config.floor, rows - window)):
            best = np.sort(np.argsort(-scores[h], kind="stable")[:n])
            past[h] = cache.cells - cache.held[h] + torch.from_numpy(best)
    tails = [torch.arange(max(n_doc - window, cache.cells - n), n_doc) for n in cache.held]
    return [torch.cat([cells, tail]) for cells, tail in zip(past, tails, strict=True)]
