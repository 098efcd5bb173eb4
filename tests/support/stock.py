"""Stock llama.cpp behaviour through raw llama_decode: the logits of every token, no eviction."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import devices

GGML_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}


def llama_module() -> ModuleType:
    """llama_cpp with a library; skips the test when there is none.

    LLAMA_CPP_LIB_PATH names a library by hand; else the package's own, which does not evict until it is armed.
    """
    if not os.environ.get("LLAMA_CPP_LIB_PATH"):
        native = pytest.importorskip("restkv_local.native")
        from restkv_local.errors import LibraryError

        try:
            native.lib()
        except LibraryError as error:
            pytest.skip(f"no llama.cpp library: {error}")
    module: ModuleType = pytest.importorskip("llama_cpp.llama_cpp")
    return module


@lru_cache(maxsize=1)
def _silence(llama: Any) -> Any:
    """Drop the library's log. The cache keeps the callback alive for as long as the library may call it."""
    callback = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


class Stock:
    """A model and a context of llama.cpp with a full cache and flash attention on. Use as a context manager.

    device: where the layers lie, as ggml names it, or several by comma; the CPU also in a build that has others.
    gpu_layers: how many of them, from the last; -1: all. split_mode: how several devices share the tensors. n_rs_seq:
    states of recurrent layers that are kept, to go back to.
    """

    def __init__(
        self, path: str | Path, *, n_ctx: int = 512, type_k: str = "f16", type_v: str = "f16", n_batch: int = 512,
        n_threads: int = 1, device: str = "CPU", gpu_layers: int = -1, split_mode: int | None = None, n_rs_seq: int = 0,
    ) -> None:  # fmt: skip
        self._llama: Any = llama_module()
        _silence(self._llama)
        self._llama.llama_backend_init()
        model_params = self._llama.llama_model_default_params()
        used = [] if device == "CPU" and split_mode is None else [devices.handle(name) for name in device.split(",")]
        self._devices = (ctypes.c_void_p * (len(used) + 1))(*used, None)
        model_params.devices = ctypes.addressof(self._devices)
        model_params.n_gpu_layers = gpu_layers if used else 0
        if split_mode is not None:
            model_params.split_mode = split_mode
        self._model = self._llama.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = self._llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, n_batch
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k, params.type_v = GGML_TYPES[type_k], GGML_TYPES[type_v]
        params.flash_attn_type = 1
        params.n_rs_seq = n_rs_seq
        self._ctx = self._llama.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise RuntimeError(f"llama.cpp cannot make a context for {path}")
        vocab = self._llama.llama_model_get_vocab(self._model)
        self.n_vocab = int(self._llama.llama_vocab_n_tokens(vocab))
        self._n = 0

    def __enter__(self) -> Stock:
        return self

    def __exit__(self, *exc: object) -> None:
        self._llama.llama_free(self._ctx)
        self._llama.llama_model_free(self._model)

    def decode(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens in one llama_decode; their logits [n, n_vocab]."""
        n = len(tokens)
        batch = self._llama.llama_batch_init(n, 0, 1)
        try:
            batch.n_tokens = n
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = int(token), self._n + i
                batch.n_seq_id[i], batch.logits[i] = 1, 1
                batch.seq_id[i][0] = 0
            status = self._llama.llama_decode(self._ctx, batch)
        finally:
            self._llama.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        self._n += n
        flat = self._llama.llama_get_logits(self._ctx)
        return np.ctypeslib.as_array(flat, shape=(n, self.n_vocab)).copy()
