"""An evicting context through raw llama_decode, without the Python engine: what any caller of the library gets."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from restkv_local import native
from restkv_local.config import GUIDE_MAX, RECALL_KERNEL, RECALL_ROWS, RECALL_SINKS, EvictConfig
from restkv_local.plan.allocation import Shares
from stock import Stock


class Evicting(Stock):
    """Like Stock, with a cache of `capacity` cells of which `budget` survive an eviction.

    archive: "ram" or the path of a file. archive_types: ggml types of its rows.
    """

    def __init__(self, path: str | Path, budget: int, capacity: int, config: EvictConfig,
                 shares: Shares | None = None, archive: str | Path | None = None,
                 archive_types: tuple[int, int] = (-1, -1), **kwargs: Any) -> None:  # fmt: skip
        lib = native.lib()
        params = native.params_from(config, budget=budget, capacity=capacity, n_threads=2)
        native.check(lib.restkv_arm(ctypes.byref(params), str(path).encode(), None))
        if shares is not None:
            native.arm_shares(config, shares)
        if archive is not None:
            self._arm_archive(archive, archive_types)
        try:
            super().__init__(path, **kwargs)
        finally:
            lib.restkv_disarm()
        self._lib = lib

    def _arm_archive(self, archive: str | Path, types: tuple[int, int]) -> None:
        in_file = archive != "ram"
        args = native.ArchiveParams(
            place=native.PLACE["file" if in_file else "ram"], type_k=types[0], type_v=types[1], n_ctx=4096,
            path=str(archive).encode() if in_file else None, n_rows=RECALL_ROWS, kernel=RECALL_KERNEL,
            sinks=RECALL_SINKS, n_guide=GUIDE_MAX,
        )  # fmt: skip
        native.check(native.lib().restkv_arm_archive(ctypes.byref(args)))

    @property
    def archive(self) -> native.ArchiveStats:
        """What the archive holds."""
        stats = native.ArchiveStats()
        native.check(self._lib.restkv_get_archive(self._ctx, ctypes.byref(stats)))
        return stats

    def read(self, tokens: Sequence[int], *, below: float = 0.0, check: bool = True) -> np.ndarray:
        """Decode a chunk that recalls for itself, after an eviction where it does not fit; its logits. below: a bound
        on the likeness of queries."""
        native.check(self._lib.restkv_set_reading(self._ctx, True, below))
        try:
            if len(tokens) > self.stats.n_free:
                self.evict()
            return self.decode(tokens)
        finally:
            status = self._lib.restkv_set_reading(self._ctx, False, 0.0)
            if check:
                native.check(status)

    def answer(self, token: int, config: EvictConfig) -> np.ndarray:
        """Decode a token as an answer of these settings does; its logits."""
        whole = config.recall_every > 0 and (self._n + 1) % config.recall_every == 0
        if not whole and config.recall_below == 0:
            return self.decode([token])
        return self.read([token], below=0.0 if whole else config.recall_below)

    def drop_tail(self) -> bool:
        """The eviction of a text that is read with recall."""
        native.check(self._lib.restkv_set_reading(self._ctx, True, 0.0))
        try:
            return self.evict()
        finally:
            native.check(self._lib.restkv_set_reading(self._ctx, False, 0.0))

    def recall(self, n_guide: int = 0) -> bool:
        """Choose the cells again; the last n_guide positions ask. False when everything was there."""
        status = self._lib.restkv_recall(self._ctx, n_guide)
        native.check(status)
        self._n = self.stats.pos_next
        return bool(status == native.OK)

    def look(self, n_rows: int, n: int) -> np.ndarray:
        """What the last queries look at: [n] weights by position."""
        weights, looked = np.zeros(n, np.float32), ctypes.c_uint32(0)
        native.check(self._lib.restkv_look(self._ctx, n_rows, weights.ctypes.data, n, ctypes.byref(looked)))
        assert 0 < looked.value <= n_rows
        return weights

    def cut(self, position: int) -> bool:
        """Forget the text from a position on; whether that was possible."""
        memory = self.call(self._llama.llama_get_memory)
        done = bool(self._llama.llama_memory_seq_rm(memory, 0, position, -1))
        self._n = self.stats.pos_next
        return done

    @property
    def stats(self) -> native.Stats:
        """Facts of the cache."""
        stats = native.Stats()
        native.check(self._lib.restkv_get_stats(self._ctx, ctypes.byref(stats)))
        return stats

    def evict(self, n_guide: int = 0) -> bool:
        """Evict now; the last n_guide positions are a guide. False when there was nothing to evict."""
        status = self._lib.restkv_evict(self._ctx, n_guide)
        native.check(status)
        self._n = self.stats.pos_next
        return bool(status == native.OK)

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
