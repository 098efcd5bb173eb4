"""How fast a device copies its own memory: the yardstick of an eviction, which reads cells and moves them."""

from __future__ import annotations

import ctypes

from .. import native
from .devices import find_device

# Bytes that are copied: with the copy more than the caches of a device hold, and what every Vulkan driver takes as one
# buffer.
COPY_BYTES = 128 << 20
_COPY_MIN = 1 << 20
_ROUNDS = 5
_SECOND = 1e-6  # the native side counts microseconds


def copy_speed(name: str, n_bytes: int = COPY_BYTES) -> float:
    """Bytes per second of a copy inside a device's memory, each byte counted twice: it is read and written.

    n_bytes: size of what is copied; less where the device has not four times as much free. The fastest of five runs.
    Raises ConfigError for an unknown device, ModelError when it cannot copy, EvictionError when memory runs out.
    """
    free = find_device(name).memory_free
    if free:
        n_bytes = min(n_bytes, free // 4)
    n_bytes = max(_COPY_MIN, n_bytes)
    microseconds = ctypes.c_uint64()
    native.check(native.lib().restkv_copy_on(name.encode(), n_bytes, _ROUNDS, ctypes.byref(microseconds)))
    return 2 * n_bytes / max(microseconds.value, 1) / _SECOND
