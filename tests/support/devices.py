"""The devices on which the tests of the graphs run: every one of this build that can hold a cache.

In an ordinary build that is the CPU alone. A build with CUDA, Metal or Vulkan adds its devices, without a switch.
RESTKV_TEST_RPC=HOST:PORT,... adds the devices that servers of ggml's RPC backend offer (tests/native/test_rpc.py).
RESTKV_TEST_LATE=1 adds one that works when it is waited for (tests/native/test_late.py).
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

import pytest

from restkv_local import native
from restkv_local.check.devices import devices
from restkv_local.errors import LibraryError
from restkv_local.plan.gpus import SPLIT_NONE

# Kinds of devices that hold caches.
_KINDS = ("cpu", "gpu", "igpu")


def library(name: str, folder: str | Path | None = None) -> ctypes.CDLL:
    """A library of ggml beside the tested one, or in another folder."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return ctypes.CDLL(str(Path(folder or native.library_dir(), f"lib{name}{suffix}")), mode=ctypes.RTLD_GLOBAL)


@functools.cache
def found() -> tuple[str, ...]:
    """Names of the devices, as ggml gives them."""
    try:
        native.lib()
    except LibraryError:
        return ("CPU",)  # the tests skip themselves
    for server in filter(None, os.environ.get("RESTKV_TEST_RPC", "").split(",")):
        ggml, rpc = library("ggml"), library("ggml-rpc")
        rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
        ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
        ggml.ggml_backend_register(rpc.ggml_backend_rpc_add_server(server.encode()))
    if os.environ.get("RESTKV_TEST_LATE"):
        ggml, late = library("ggml"), library("ggml-late")
        late.ggml_backend_late_reg.restype = ctypes.c_void_p
        ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
        ggml.ggml_backend_register(late.ggml_backend_late_reg())
    return tuple(device.name for device in devices() if device.kind in _KINDS)


def computes_as_the_cpu(name: str) -> bool:
    """Whether results must be those of the fused stages to the last bit: the same code does the arithmetic."""
    return name == "CPU" or name.startswith(("RPC", "LATE"))


def placed(name: str, gpu_layers: int) -> dict[str, int]:
    """Options of an engine that put layers on this device alone. llama.cpp counts the devices of servers first."""
    if name == "CPU":
        return {}
    gpus = sorted((gpu for gpu in found() if gpu != "CPU"), key=lambda gpu: not gpu.startswith("RPC"))
    return {"n_gpu_layers": gpu_layers, "split_mode": SPLIT_NONE, "main_gpu": gpus.index(name)}


def pinned_extra(name: str) -> int:
    """Bytes by which memory of the host that a device can reach is longer than asked for: ggml's Vulkan pads it."""
    return 32 if name.startswith("Vulkan") else 0


def skip_gpt_oss(name: str) -> None:
    """Skip a test of gpt-oss on a device where llama.cpp, evicting or not, crashes or never returns."""
    what = next((device.description for device in devices() if device.name == name), "")
    if "llvmpipe" in what:
        pytest.skip(f"{what}: stock llama.cpp crashes (Mesa 22.3) or hangs (25.0) at a decoded token of gpt-oss")


def handle(name: str) -> ctypes.c_void_p:
    """ggml's handle of a device."""
    ggml = library("ggml")
    ggml.ggml_backend_dev_by_name.restype = ctypes.c_void_p
    value = ctypes.c_void_p(ggml.ggml_backend_dev_by_name(name.encode()))
    assert value, f"there is no device {name}"
    return value
