"""An evicting context through raw llama_decode, without the Python engine: what any caller of the library gets."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from restkv_local import native
from restkv_local.config import EvictConfig
from restkv_local.plan.allocation import Shares
from stock import Stock


class Evicting(Stock):
    """Like Stock, with a cache of `capacity` cells of which `budget` survive an eviction."""

    def __init__(self, path: str | Path, budget: int, capacity: int, config: EvictConfig,
                 shares: Shares | None = None, **kwargs: Any) -> None:  # fmt: skip
        lib = native.lib()
        params = native.params_from(config, budget=budget, capacity=capacity, n_threads=2)
        native.check(lib.restkv_arm(ctypes.byref(params), str(path).encode(), None))
        if shares is not None:
            native.arm_shares(config, shares)
        try:
            super().__init__(path, **kwargs)
        finally:
            lib.restkv_disarm()
        self._lib = lib

    @property
    def stats(self) -> native.Stats:
        """Facts of the cache."""
        stats = native.Stats()
        native.check(self._lib.restkv_get_stats(self._ctx, ctypes.byref(stats)))
        return stats

    def evict(self, n_guide: int = 0) -> bool:
        """Evict now; the last n_guide positions are a guide. False when there was nothing to evict."""
        status = native.check(self._lib.restkv_evict(self._ctx, n_guide))
        self._n = self.stats.pos_next
        return not status

    def kept(self, layer: int, head: int) -> np.ndarray:
        """Positions that a KV head holds."""
        n = self._lib.restkv_kept(self._ctx, layer, head, None, 0)
        assert n >= 0
        out = np.empty(n, np.int32)
        self._lib.restkv_kept(self._ctx, layer, head, out.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), n)
        return out

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """A function of llama_cpp on this context."""
        return function(self._ctx, *args)
