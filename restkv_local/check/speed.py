"""How fast a device evicts, at a stated shape: one layer of a model."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .. import native
from ..errors import EvictionError, ModelError
from ..native import kernels
from ..reference.inputs import prepare
from .copying import copy_speed
from .result import DeviceSpeed

# Llama-3.1-8B's attention (32 query heads on 8 KV heads of 128 values) at budget 4096 and reserve 2048.
SHAPE: dict[str, Any] = {
    "heads": 32, "kv_heads": 8, "head_size": 128, "cells": 6144, "budget": 4096, "window": 32, "type": "f16"
}  # fmt: skip
# SmolLM2-135M's, for a processor.
SMALL: dict[str, Any] = SHAPE | {"heads": 9, "kv_heads": 3, "head_size": 64, "cells": 2048, "budget": 1024}
_ROUNDS = 3
_COPY_BYTES = 32 << 20  # of a check that should not take long
_SECOND = 1e-6


def measure_device(name: str, shape: dict[str, Any] | None = None, rounds: int = _ROUNDS) -> DeviceSpeed | None:
    """Time the stages as graphs on a device for one layer of `shape` (default SHAPE; type "f16" or "f32"), ReST-KV's
    defaults, and a copy of 32 MiB. None when the device lacks an operation or the memory for it.

    Raises ConfigError when there is no such device or the shape is impossible.
    """
    shape = SHAPE | (shape or {})
    d, n = shape["head_size"], shape["cells"]
    rng = np.random.default_rng(0)
    kind = np.float16 if shape["type"] == "f16" else np.float32
    k, v = (rng.standard_normal((shape["kv_heads"], n, d), dtype=np.float32).astype(kind) for _ in range(2))
    q = rng.standard_normal((shape["heads"], shape["window"], d), dtype=np.float32)
    # The device gets a factor of d x d whatever the rows of W_o: few make the preparation short.
    wo = rng.standard_normal((d, shape["heads"] * d), dtype=np.float32)
    params = {"budget": shape["budget"], "window": shape["window"], "reduce": "mean"}
    args = kernels.score_args(prepare(q, k, v, wo, None, None, params), 0)
    times = native.DeviceTimes()
    try:
        native.check(native.lib().restkv_time_on(ctypes.byref(args), name.encode(), rounds, ctypes.byref(times)))
        copied = copy_speed(name, _COPY_BYTES)
    except (EvictionError, ModelError):
        return None
    return DeviceSpeed(
        shape=shape,
        attend_seconds=times.us_attend * _SECOND,
        choose_seconds=times.us_choose * _SECOND,
        compact_seconds=times.us_compact * _SECOND,
        copy_bytes_per_s=copied,
        attend_bytes_per_s=_rate(times.bytes_attend, times.us_attend),
        compact_bytes_per_s=_rate(times.bytes_moved, times.us_compact),
    )


def _rate(n_bytes: int, microseconds: int) -> float:
    return n_bytes / max(microseconds, 1) / _SECOND
