"""n_gpu_layers=-1: as many layers on the GPUs as fit with their cells and with the memory of their evictions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import native
from ..check.devices import Device, devices
from ..config import EvictConfig
from ..errors import ConfigError
from .devices import HOST, GraphMemory, layers_that_fit, read_weights
from .gpus import SPLIT_NONE
from .memory import GGML_TYPES, MemoryPlan, Probe

# Devices that hold layers; an igpu lies in the memory of the host.
_GPUS = ("gpu", "igpu")
NO_GPU = "there is no GPU here, or this build has no part for it"


def graph_memory(plan: MemoryPlan, probe: Probe, evict: EvictConfig, device: str) -> GraphMemory | None:
    """What evictions and recalls as graphs will take for one device, before anything is loaded; None: neither runs so.

    device: as ggml names it. Raises ConfigError when there is no such device.
    """
    ways = ("graph",) if device == HOST else ("auto", "graph")
    if plan.method == "full" or evict.stages not in ways:
        return None
    params = native.params_from(evict, budget=plan.budget, capacity=plan.capacity, n_threads=1)
    k, v = (GGML_TYPES[name] for name in plan.kv_types)
    cells = plan.shares.rows + plan.capacity - plan.budget  # of the largest layer
    shape = native.LayerShape(
        probe.n_head, probe.n_head_kv, probe.n_embd_head_k, probe.n_embd_head_v, k, v,
        cells, plan.shares.rows, plan.allocation == "ada",
    )  # fmt: skip
    here, host = ctypes.c_uint64(), ctypes.c_uint64()
    by, lib, name = ctypes.byref, native.lib(), device.encode()
    native.check(lib.restkv_plan_graph(by(params), by(shape), name, by(here), by(host)))
    memory = GraphMemory(here.value, host.value)
    if plan.archive is not None:
        of_k, of_v = plan.archive.types
        archive = native.archive_params(plan.archive, (GGML_TYPES[of_k], GGML_TYPES[of_v]))
        native.check(lib.restkv_plan_recall(by(params), by(archive), by(shape), name, by(here), by(host)))
        memory = GraphMemory(memory.device_bytes + here.value, memory.host_bytes + host.value)
    return memory if memory.device_bytes else None


def fit(
    path: Path,
    plan: MemoryPlan,
    gpu_layers: int,
    options: dict[str, Any],
    graphs: Callable[[str], GraphMemory | None] = lambda device: None,
) -> tuple[int, str]:
    """The number of layers to ask llama.cpp for, and what to tell the user ("" when all fit or a number was given).

    options: those of llama_cpp.Llama, for main_gpu, split_mode and tensor_split. graphs: graph_memory() of a device.
    Raises ConfigError for a number of layers, or a choice of GPUs, where there is no GPU.
    """
    chosen = options.get("tensor_split") is not None or bool(options.get("main_gpu"))
    if gpu_layers == 0 and not chosen:
        return 0, ""
    found = [device for device in devices() if device.kind in _GPUS]
    if not found and (gpu_layers > 0 or chosen):
        raise ConfigError(
            f"{NO_GPU}: leave n_gpu_layers, main_gpu and tensor_split out, or build for it as README.md says"
        )
    if not found:
        return 0, f"{NO_GPU}: everything runs on the CPU"
    if gpu_layers >= 0:
        return gpu_layers, ""
    gpus = _used([device for device in found if device.kind == "gpu"], options)
    if not gpus or any(not gpu.memory_free for gpu in gpus):
        return -1, ""  # llama.cpp decides: integrated GPUs take what the host has, others do not tell
    weights = read_weights(path)
    free = [gpu.memory_free for gpu in gpus]
    given = options.get("tensor_split")
    shares = [*given, *[0.0] * len(gpus)][: len(gpus)] if given else free
    work = [graphs(gpu.name) or GraphMemory(0, 0) for gpu in gpus]
    n, most = layers_that_fit(weights, plan, free, shares, work), len(weights.layers) + 1
    if n == most:
        return -1, ""
    names = ", ".join(gpu.name for gpu in gpus)
    return n, f"{n} of {most} layers fit on {names} with their cells; the others stay on the CPU"


def _used(gpus: list[Device], options: dict[str, Any]) -> list[Device]:
    """The GPUs that llama.cpp would share a model out to."""
    gpus = sorted(gpus, key=lambda gpu: gpu.backend != "RPC")  # llama.cpp's order: servers first
    main = options.get("main_gpu", 0)
    return gpus[main : main + 1] if options.get("split_mode") == SPLIT_NONE else gpus
