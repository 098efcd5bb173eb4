"""One eviction of one layer's cache with the stages of the reference."""

from __future__ import annotations

import numpy as np
import torch

from ..config import EvictConfig
from ..errors import EvictionError
from .cache import LayerCache
from .scores import score


def effective_window(config: EvictConfig, budget: int) -> int:
    """Last cells that are always kept: StreamingLLM keeps everything of its budget that is not a sink."""
    return budget - config.sinks if config.method == "streamingllm" else config.window


def survivors(
    cache: LayerCache,
    config: EvictConfig,
    *,
    budget: int,
    n_guide: int,
    layer: int,
    wo: torch.Tensor,
    attn_scale: float,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Cells [kv_heads, budget] that stay, ascending; the last n_guide cells are a guide and never among them.

    wo: [n_embd, heads * d]. attn_scale, softcap, sinks: the model's own attention. The cache must hold at least
    budget cells besides the guide. Raises EvictionError when no query of the window is remembered.
    """
    window = effective_window(config, budget)
    n_doc = cache.cells - n_guide
    q = cache.window_queries(window)
    if q.shape[1] == 0:
        raise EvictionError("no query of the window is remembered; decode at least two tokens before an eviction")
    indices = score(
        q.numpy(), cache.k.numpy(), cache.v.numpy(), wo.numpy(), pos=cache.pos.numpy(),
        sinks=None if sinks is None else sinks.numpy(), n_tail=window + n_guide,
        method=config.method, budget=budget, window=window, alpha=config.alpha, kernel=config.kernel,
        scale=config.scale, pooling=config.pooling, metric_mode=config.metric_mode, use_wo=config.use_wo,
        use_norm=config.use_norm, use_ema=config.use_ema, tau=config.tau, reduce=config.reduce, seed=config.seed,
        layer=layer, attn_scale=attn_scale, softcap=softcap,
    )[2]  # fmt: skip
    past = torch.from_numpy(np.asarray(indices, dtype=np.int64))
    tail = torch.arange(n_doc - window, n_doc).expand(past.shape[0], -1)
    return torch.cat([past, tail], dim=1)
