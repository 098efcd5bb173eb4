"""How an engine is told which of several GPUs to use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError

SPLIT_NONE = 0  # LLAMA_SPLIT_MODE_NONE: one GPU
DEVICES_MAX = 16  # llama_max_devices()


def gpu_options(main_gpu: int | None, tensor_split: Sequence[float] | None) -> dict[str, Any]:
    """Keyword arguments of `Engine`: one GPU by its number, or shares of several; nothing where llama.cpp chooses.

    Raises ConfigError when both are given.
    """
    if main_gpu is not None and tensor_split is not None:
        raise ConfigError("--main-gpu puts everything on one GPU and --tensor-split on several: give one")
    if main_gpu is not None:
        return {"split_mode": SPLIT_NONE, "main_gpu": main_gpu}
    return {} if tensor_split is None else {"tensor_split": list(tensor_split)}
