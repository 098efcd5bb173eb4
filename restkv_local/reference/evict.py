"""One eviction of one layer's cache with the stages of the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..config import EvictConfig
from ..errors import EvictionError
from .cache import LayerCache
from .scores import score
from .select import select


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
    n_guide: int,
    layer: int,
    place: Place,
    wo: torch.Tensor,
    attn_scale: float,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Cells [kv_heads, budget] that stay, ascending; the last n_guide cells are a guide and never among them.

    layer: in the model. place: among the evicting layers (method "lacache"). wo: [n_embd, heads * d]. attn_scale,
    softcap, sinks: the model's own attention. The cache must hold at least budget cells besides the
    guide. Raises EvictionError when no query of the window is remembered.
    """
    window = config.window_cells(budget)
    n_doc = cache.cells - n_guide
    tail = torch.arange(n_doc - window, n_doc).expand(cache.pos.shape[0], -1)
    if config.method == "h2o":
        chosen = select(cache.votes[:, : n_doc - window].float().numpy(), budget - window)
        return torch.cat([torch.from_numpy(chosen.astype(np.int64)), tail], dim=1)
    q = cache.window_queries(window, even=config.traits.pools)
    if q.shape[1] == 0:
        raise EvictionError("no query of the window is remembered; decode at least two tokens before an eviction")
    ladder = {}
    if config.method == "lacache":
        layer = place.layer
        ladder = {"num_layers": place.n_layers, "cursor": place.cursor, "start_size": config.sinks,
                  "span": config.span, "overlap": config.overlap}  # fmt: skip
    indices = score(
        q.numpy(), cache.k.numpy(), cache.v.numpy(), wo.numpy(), pos=cache.pos.numpy(),
        sinks=None if sinks is None else sinks.numpy(), n_tail=window + n_guide,
        method=config.method, budget=budget, window=window, alpha=config.alpha, kernel=config.kernel_used,
        scale=config.scale, pooling=config.pooling_used, indicator=config.indicator, rows=config.rows,
        metric_mode=config.metric_mode, use_wo=config.use_wo,
        use_norm=config.use_norm, use_ema=config.use_ema, tau=config.tau, reduce=config.reduce, seed=config.seed,
        layer=layer, attn_scale=attn_scale, softcap=softcap, **ladder,
    )[2]  # fmt: skip
    past = torch.from_numpy(np.asarray(indices, dtype=np.int64))
    return torch.cat([past, tail], dim=1)
