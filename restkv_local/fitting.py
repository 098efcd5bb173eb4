"""n_gpu_layers=-1: as many layers on the GPUs as fit with their cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .check.devices import Device, devices
from .device_plan import layers_that_fit, read_weights
from .gpus import SPLIT_NONE
from .plan import MemoryPlan


def fit(path: Path, plan: MemoryPlan, gpu_layers: int, options: dict[str, Any]) -> tuple[int, str]:
    """The number of layers to ask llama.cpp for, and what to tell the user ("" when all fit or a number was given).

    options: those of llama_cpp.Llama, for main_gpu, split_mode and tensor_split.
    """
    if gpu_layers >= 0:
        return gpu_layers, ""
    gpus = _used([device for device in devices() if device.kind == "gpu"], options)
    if not gpus or any(not gpu.memory_free for gpu in gpus):
        return -1, ""  # llama.cpp decides: integrated GPUs take what the host has, others do not tell
    weights = read_weights(path)
    free = [gpu.memory_free for gpu in gpus]
    given = options.get("tensor_split")
    shares = [*given, *[0.0] * len(gpus)][: len(gpus)] if given else free
    n, most = layers_that_fit(weights, plan, free, shares), len(weights.layers) + 1
    if n == most:
        return -1, ""
    names = ", ".join(gpu.name for gpu in gpus)
    return n, f"{n} of {most} layers fit on {names} with their cells; the others stay on the CPU"


def _used(gpus: list[Device], options: dict[str, Any]) -> list[Device]:
    """The GPUs that llama.cpp would share a model out to."""
    gpus = sorted(gpus, key=lambda gpu: gpu.backend != "RPC")  # llama.cpp's order: servers first
    main = options.get("main_gpu", 0)
    return gpus[main : main + 1] if options.get("split_mode") == SPLIT_NONE else gpus
