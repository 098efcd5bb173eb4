"""The yardstick of the benchmark: llama.cpp's own full cache, driven through `llama_decode` alone.

It shares the weights of a loaded model, so one process times both sides. A long full cache can be filled with copies of
a short text's cells: attention reads every cell whatever it holds, so the time of a step is that of a real text.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RestkvError

# Cells copied at a time; small enough for the cache of a sliding-window layer.
FILL_BLOCK = 512
_PAD = 256


class StockError(RestkvError):
    """The full cache could not be made, filled or run."""


class StockCache:
    """A context with a full cache of `n_ctx` cells on the weights of `model` (a `llama_cpp.llama_model_p`)."""

    def __init__(
        self, model: Any, n_ctx: int, *, n_batch: int, n_threads: int, n_threads_batch: int, type_k: int, type_v: int
    ) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        params = llama_cpp.llama_context_default_params()
        # The last copied block may reach beyond the end, where it is cut.
        params.n_ctx = (n_ctx + FILL_BLOCK + _PAD - 1) // _PAD * _PAD
        params.n_batch = params.n_ubatch = self.n_batch = n_batch
        params.n_threads, params.n_threads_batch = n_threads, n_threads_batch
        params.type_k, params.type_v = type_k, type_v
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.swa_full = False
        # A second sequence takes each restored block, which then joins the first one without moving. Both use one
        # buffer, as a single sequence does.
        params.n_seq_max, params.kv_unified = 2, True
        self._ctx: Any = llama_cpp.llama_init_from_model(model, params)
        if not self._ctx:
            raise StockError(f"a full cache of {n_ctx} cells could not be made; choose shorter --contexts")
        self._memory: Any = llama_cpp.llama_get_memory(self._ctx)
        self._batch: Any = llama_cpp.llama_batch_init(n_batch, 0, 1)
        self.n_tokens = 0

    def close(self) -> None:
        """Free the cache; the model stays."""
        if self._ctx:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._ctx)
            self._ctx = None

    def clear(self) -> None:
        """Forget everything."""
        self._lib.llama_memory_clear(self._memory, False)
        self.n_tokens = 0

    def read(self, tokens: Sequence[int]) -> float:
        """Append tokens in batches; seconds it took."""
        start = time.perf_counter()
        for first in range(0, len(tokens), self.n_batch):
            chunk = tokens[first : first + self.n_batch]
            batch = self._batch
            batch.n_tokens = len(chunk)
            for i, token in enumerate(chunk):
                batch.token[i] = token
                batch.pos[i] = self.n_tokens + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = i == len(chunk) - 1
            status = self._lib.llama_decode(self._ctx, batch)
            if status:
                raise StockError(f"llama_decode of the full cache answered {status} at position {self.n_tokens}")
            self.n_tokens += len(chunk)
        self._lib.llama_synchronize(self._ctx)
        return time.perf_counter() - start

    def read_one_by_one(self, tokens: Sequence[int]) -> float:
        """Append tokens as an answer does, one per step; seconds it took."""
        return sum(self.read([token]) for token in tokens)

    def fill(self, n_tokens: int, text: Sequence[int]) -> None:
        """Grow the cache to `n_tokens` cells with copies of the cells of `text` (at least FILL_BLOCK tokens).

        Positions go on; keys keep the rotation of the place they were computed at, which costs the same to read.
        """
        if self.n_tokens < min(FILL_BLOCK, n_tokens):
            self.read(text[self.n_tokens : min(FILL_BLOCK, n_tokens)])
        if self.n_tokens >= n_tokens:
            return
        block, places = self._first_block()
        while self.n_tokens < n_tokens:
            self._append(block, places, min(FILL_BLOCK, n_tokens - self.n_tokens))

    def _first_block(self) -> tuple[npt.NDArray[np.uint8], list[int]]:
        """The saved state of the first FILL_BLOCK cells, and where in it the cells' positions are written."""
        lib = self._lib
        lib.llama_memory_seq_cp(self._memory, 0, 1, 0, FILL_BLOCK)
        size = lib.llama_state_seq_get_size(self._ctx, 1)
        block = np.zeros(size, dtype=np.uint8)
        written = lib.llama_state_seq_get_data(self._ctx, _pointer(block), size, 1)
        lib.llama_memory_seq_rm(self._memory, 1, -1, -1)
        if written != size:
            raise StockError("llama.cpp did not save the cells that should fill the full cache")
        return block, position_offsets(block)

    def _append(self, block: npt.NDArray[np.uint8], places: list[int], n_cells: int) -> None:
        positions = np.arange(self.n_tokens, self.n_tokens + FILL_BLOCK, dtype=np.int32)
        for place, position in zip(places, np.resize(positions, len(places)), strict=True):
            block[place : place + 4] = np.frombuffer(position.tobytes(), dtype=np.uint8)
        lib = self._lib
        if not lib.llama_state_seq_set_data(self._ctx, _pointer(block), block.size, 1):
            raise StockError(f"llama.cpp did not restore copied cells at position {self.n_tokens}")
        end = self.n_tokens + n_cells
        if n_cells < FILL_BLOCK:
            lib.llama_memory_seq_rm(self._memory, 1, end, -1)
        lib.llama_memory_seq_cp(self._memory, 1, 0, self.n_tokens, end)
        lib.llama_memory_seq_rm(self._memory, 1, -1, -1)
        self.n_tokens = end
        if lib.llama_memory_seq_pos_max(self._memory, 0) != end - 1:
            raise StockError(f"copied cells do not continue the text at position {end}")


def synchronize(engine: Any) -> None:
    """Wait until the device has done what the engine gave it: llama_decode may return before."""
    import llama_cpp

    llama_cpp.llama_synchronize(engine.ctx)


def position_offsets(block: npt.NDArray[np.uint8]) -> list[int]:
    """Byte offsets of the cells' positions in the saved state of one sequence.

    Layout (llama.cpp, src/llama-kv-cache.cpp, state_write): u32 magic, i32 sequence; then per cache (a second one for
    sliding-window layers) u32 streams = 1, u32 cells, per cell {i32 position, u32 sequences = 1, i32 sequence},
    u32 transposed = 0, u32 layers, and for all K, then all V, of the layers {i32 type, u64 row bytes, rows}.
    Raises StockError on any other layout, such as that of a recurrent model.
    """
    data = block.tobytes()
    at = 8
    offsets: list[int] = []

    def number(kind: str, width: int) -> int:
        nonlocal at
        if at + width > len(data):
            raise StockError("the saved state of this model has another layout; use --stock-fill real")
        value = int(np.frombuffer(data, dtype=kind, count=1, offset=at)[0])
        at += width
        return value

    while at < len(data):
        n_streams, n_cells = number("<u4", 4), number("<u4", 4)
        cells = range(at, at + 12 * n_cells, 12)
        at += 12 * n_cells
        transposed, n_layers = number("<u4", 4), number("<u4", 4)
        if n_streams != 1 or transposed or not 0 < n_layers < 4096:
            raise StockError("the saved state of this model has another layout; use --stock-fill real")
        for _ in range(2 * n_layers):
            number("<i4", 4)
            n_bytes = number("<u8", 8) * n_cells
            at += n_bytes
        if at > len(data):
            raise StockError("the saved state of this model has another layout; use --stock-fill real")
        offsets.extend(cells)
    return offsets


def _pointer(block: npt.NDArray[np.uint8]) -> Any:
    return block.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
