"""Engines of the reference with an archive, their texts, and what their cells hold, for the tests of recall."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import write_random
from restkv_local.config import EvictConfig
from restkv_local.reference.forward import Transformer
from restkv_local.reference.model import ReferenceEngine

BUDGET, RESERVE, WINDOW = 64, 64, 16
# Plain; keys with a norm; soft-capping and sliding windows; sliding windows; attention sinks and sliding windows.
FAMILIES = ("llama", "qwen3", "gemma2", "gemma3", "gpt-oss")
# The second layer of every family sees the whole text.
LAYER = 1


def loader(folder: Path) -> Callable[..., Transformer]:
    """Random models by family, each written and loaded once; keywords as of write_random."""

    @functools.cache
    def load(family: str, **shape: Any) -> Transformer:
        return Transformer(write_random(folder / f"{len(list(folder.iterdir()))}.gguf", family, seed=6, **shape))

    return load


def tokens(n: int, seed: int = 3) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(3, 320, n)]


def engine(
    model: Transformer, *, capacity: int | None = BUDGET + RESERVE, archive: bool = True, **options: Any
) -> ReferenceEngine:
    """With an archive. Its evictions drop cells at random: a recall owes them nothing."""
    config = EvictConfig(window=WINDOW, budget=BUDGET, method="random")
    return ReferenceEngine(model, BUDGET, capacity, config, archive=archive, **options)


def read(into: ReferenceEngine, text: Sequence[int], *, recall: bool = True) -> None:
    for at in range(0, len(text), 32):
        into.decode(text[at : at + 32], recall=recall)


def held(of: ReferenceEngine, layer: int = LAYER) -> list[list[int]]:
    return [of.kept(layer, head).tolist() for head in (0, 1)]


def rows(of: ReferenceEngine, layer: int = LAYER) -> tuple[torch.Tensor, torch.Tensor]:
    """k and v [kv_heads, cells, d] of a layer now."""
    return of._caches[layer].k.clone(), of._caches[layer].v.clone()


def check_rows(of: ReferenceEngine, k: torch.Tensor, v: torch.Tensor, layer: int = LAYER) -> None:
    """Every cell holds the row of its position, to the last bit; k and v [kv_heads, positions, d]."""
    for head, cells in enumerate(held(of, layer)):
        assert cells[-1] < k.shape[1]
        assert torch.equal(of._caches[layer].k[head], k[head, cells])
        assert torch.equal(of._caches[layer].v[head], v[head, cells])
