"""How fast a device copies its own memory: the yardstick of an eviction, which reads cells and moves them."""

from __future__ import annotations

import ctypes as C
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import native
from ..check.devices import find_device
from ..errors import LibraryError, RestkvError

# Bytes of the tensor that is copied: with its copy more than the caches of a device hold, and what every Vulkan driver
# takes as one buffer.
COPY_BYTES = 128 << 20
_COPY_MIN = 1 << 20
_ROW = 4096  # floats; many rows, so that a CPU shares them out
_TIMES = 5


class _InitParams(C.Structure):
    """ggml_init_params"""

    _fields_ = [("mem_size", C.c_size_t), ("mem_buffer", C.c_void_p), ("no_alloc", C.c_bool)]


# library -> name -> (result, arguments), of ggml.h, ggml-alloc.h and ggml-backend.h
_SIGNATURES: dict[str, dict[str, tuple[Any, list[Any]]]] = {
    "ggml": {
        "ggml_backend_dev_count": (C.c_size_t, []),
        "ggml_backend_dev_get": (C.c_void_p, [C.c_size_t]),
    },
    "ggml-base": {
        "ggml_backend_dev_name": (C.c_char_p, [C.c_void_p]),
        "ggml_backend_dev_supports_op": (C.c_bool, [C.c_void_p, C.c_void_p]),
        "ggml_backend_dev_init": (C.c_void_p, [C.c_void_p, C.c_char_p]),
        "ggml_backend_dev_backend_reg": (C.c_void_p, [C.c_void_p]),
        "ggml_backend_reg_get_proc_address": (C.c_void_p, [C.c_void_p, C.c_char_p]),
        "ggml_backend_free": (None, [C.c_void_p]),
        "ggml_backend_alloc_ctx_tensors": (C.c_void_p, [C.c_void_p, C.c_void_p]),
        "ggml_backend_buffer_clear": (None, [C.c_void_p, C.c_uint8]),
        "ggml_backend_buffer_free": (None, [C.c_void_p]),
        "ggml_backend_graph_compute": (C.c_int, [C.c_void_p, C.c_void_p]),
        "ggml_backend_synchronize": (None, [C.c_void_p]),
        "ggml_init": (C.c_void_p, [_InitParams]),
        "ggml_free": (None, [C.c_void_p]),
        "ggml_new_tensor_2d": (C.c_void_p, [C.c_void_p, C.c_int, C.c_int64, C.c_int64]),
        "ggml_cpy": (C.c_void_p, [C.c_void_p, C.c_void_p, C.c_void_p]),
        "ggml_new_graph": (C.c_void_p, [C.c_void_p]),
        "ggml_build_forward_expand": (None, [C.c_void_p, C.c_void_p]),
    },
}


class _Ggml:
    """The functions above, from the libraries beside the patched one."""

    def __init__(self, folder: Path) -> None:
        for library, functions in _SIGNATURES.items():
            loaded = C.CDLL(str(_file(folder, library)))
            for name, (result, arguments) in functions.items():
                function = getattr(loaded, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@functools.cache
def _ggml() -> _Ggml:
    native.lib()
    try:
        return _Ggml(native.library_dir())
    except (OSError, AttributeError) as error:
        raise LibraryError(f"ggml beside the llama library cannot be used ({error}): build the package again") from None


def _file(folder: Path, library: str) -> Path:
    names = {"win32": f"{library}.dll", "darwin": f"lib{library}.dylib"}
    path = folder / names.get(sys.platform, f"lib{library}.so")
    return path if path.exists() else folder / f"lib{library}.so"


def copy_speed(name: str, n_bytes: int = COPY_BYTES) -> float:
    """Bytes per second of a copy inside a device's memory, each byte counted twice: it is read and written.

    n_bytes: size of what is copied; less where the device has not four times as much free. The median of five runs.
    Raises ConfigError for an unknown device, RestkvError when it cannot copy.
    """
    free = find_device(name).memory_free
    if free:
        n_bytes = min(n_bytes, free // 4)
    rows = max(_COPY_MIN, n_bytes) // (4 * _ROW)
    ggml = _ggml()
    device = next(
        handle
        for handle in map(ggml.ggml_backend_dev_get, range(ggml.ggml_backend_dev_count()))
        if ggml.ggml_backend_dev_name(handle).decode() == name
    )
    undo: list[Callable[[], None]] = []
    try:
        backend = _taken(ggml.ggml_backend_dev_init(device, None), name)
        undo.append(lambda: ggml.ggml_backend_free(backend))
        _use_all_cores(ggml, device, backend)
        context = _taken(ggml.ggml_init(_InitParams(1 << 20, None, True)), name)
        undo.append(lambda: ggml.ggml_free(context))
        source, target = (ggml.ggml_new_tensor_2d(context, native.GGML_F32, _ROW, rows) for _ in range(2))
        graph = ggml.ggml_new_graph(context)
        copy = ggml.ggml_cpy(context, source, target)
        if not ggml.ggml_backend_dev_supports_op(device, copy):
            raise RestkvError(f"{name} cannot copy inside its own memory")
        ggml.ggml_build_forward_expand(graph, copy)
        buffer = _taken(ggml.ggml_backend_alloc_ctx_tensors(context, backend), name)
        undo.append(lambda: ggml.ggml_backend_buffer_free(buffer))
        ggml.ggml_backend_buffer_clear(buffer, 0)
        seconds = []
        for _ in range(_TIMES + 1):
            start = time.perf_counter()
            if ggml.ggml_backend_graph_compute(backend, graph) != 0:
                raise RestkvError(f"{name} could not copy {4 * _ROW * rows} bytes in its own memory")
            ggml.ggml_backend_synchronize(backend)
            seconds.append(time.perf_counter() - start)
        # the first run warms up
        return 2 * 4 * _ROW * rows / statistics.median(seconds[1:])
    finally:
        for step in reversed(undo):
            step()


def _taken(handle: int | None, name: str) -> int:
    if not handle:
        raise RestkvError(f"{name} has no memory left to measure a copy")
    return handle


def _use_all_cores(ggml: Any, device: int, backend: int) -> None:
    registry = ggml.ggml_backend_dev_backend_reg(device)
    address = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
    if address:
        C.CFUNCTYPE(None, C.c_void_p, C.c_int)(address)(backend, os.cpu_count() or 1)
