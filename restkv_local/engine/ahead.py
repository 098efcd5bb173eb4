"""What an engine will be, found before its weights are loaded: the model, its plan, the layers on GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import DEFAULT_BATCH, DEFAULT_CONTEXT, EvictConfig
from ..models.files import resolve
from ..models.lora import check_lora
from ..native import interrupts
from ..plan.archive import archive_types
from ..plan.fitting import fit, graph_memory
from ..plan.memory import GGML_TYPES, KvType, MemoryPlan, kv_pair, plan_memory
from .construct import probe_model
from .options import check_options


@dataclass(frozen=True)
class Ahead:
    """path: of the model. type_k, type_v: ggml types of the cache; archived: of the archive's rows, where they are
    others. notice: what a user should know of the layers on GPUs, or ""."""

    path: Path
    plan: MemoryPlan
    type_k: int
    type_v: int
    archived: tuple[int, int] | None
    notice: str


def look_ahead(
    model_path: str | os.PathLike[str] | None,
    n_ctx: int,
    evict: EvictConfig,
    llama: Mapping[str, Any],
    *,
    kv_type: KvType,
    n_batch: int,
    n_gpu_layers: int,
) -> Ahead:
    """Check and plan an engine of these arguments, whose options are checked. Raises what Engine raises before it loads
    weights, and Cancelled when Ctrl-C came meanwhile."""
    path = resolve(model_path)
    types = kv_pair(kv_type)
    type_k, type_v = _numbers(types)
    kept_types = archive_types(evict, types)
    archived = None if kept_types == types else _numbers(kept_types)
    probe = probe_model(path, type_k, type_v, archived)
    if llama.get("lora_path"):
        check_lora(llama["lora_path"], probe.arch)
    interrupts.check()
    on_device = n_gpu_layers != 0 and llama.get("offload_kqv", True)
    memory = plan_memory(path, probe, n_ctx, evict, kv_type=types, n_batch=n_batch, on_device=on_device)
    layers, notice = fit(
        path, memory, n_gpu_layers, dict(llama), lambda device: graph_memory(memory, probe, evict, device)
    )
    return Ahead(path, replace(memory, gpu_layers=layers), type_k, type_v, archived, notice)


def plan(
    model_path: str | os.PathLike[str] | None = None,
    n_ctx: int = DEFAULT_CONTEXT,
    evict: EvictConfig | None = None,
    *,
    kv_type: KvType = "f16",
    n_batch: int = DEFAULT_BATCH,
    n_gpu_layers: int = 0,
    **llama: Any,
) -> MemoryPlan:
    """The plan that `Engine` with the same arguments would have, without loading a weight: sizes in cells and bytes.

    It reads the head of the model file alone. `to_json()` of what it returns is plain values.
    Raises ModelError, ConfigError and LibraryError, as Engine does before it loads: what is impossible is told here.
    """
    evict, options = evict or EvictConfig(), dict(llama)
    check_options(evict, options, n_gpu_layers=n_gpu_layers)
    found = look_ahead(
        model_path, n_ctx, evict, options, kv_type=kv_type, n_batch=n_batch, n_gpu_layers=n_gpu_layers
    )
    return found.plan


def _numbers(types: tuple[str, str]) -> tuple[int, int]:
    return GGML_TYPES[types[0]], GGML_TYPES[types[1]]
