"""Scores of the methods that look at no query: by position, by chance, by the ladder, or by the keys alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .inputs import Float32, ScoreInputs
from .params import ScoreParams


def queryless_scores(inputs: ScoreInputs) -> Float32:
    """[H, N - w] scores, the same for all query heads of a KV head."""
    p, past = inputs.params, inputs.n_past
    per_kv_head: Float32
    if p.method in ("streamingllm", "fifo"):
        index = np.arange(past, dtype=np.float32)
        per_kv_head = np.tile(-index if p.method == "streamingllm" else index, (inputs.n_kv_heads, 1))
    elif p.method == "lacache":
        per_kv_head = np.tile(ladder_scores(inputs), (inputs.n_kv_heads, 1))
    elif p.method == "random":
        per_kv_head = np.stack(
            [random_scores(p, p.head_kv + head, inputs.positions()[head, :past]) for head in range(inputs.n_kv_heads)]
        )
    else:
        k = torch.from_numpy(inputs.k[:, : inputs.n_text]).double()
        keyed = key_norm_scores(k) if p.method == "knorm" else key_diff_scores(k)
        per_kv_head = keyed[:, :past].float().numpy()
    return np.repeat(per_kv_head, inputs.group, axis=0)


def random_scores(params: ScoreParams, kv_head: int, positions: npt.NDArray[np.int64]) -> Float32:
    """Uniform in [0, 1), a function of seed, layer, KV head and position alone (splitmix64 finaliser)."""
    wrap = 2**64 - 1
    key = params.seed ^ (params.layer * 0x9E3779B97F4A7C15 & wrap) ^ ((kv_head + 1) * 0xBF58476D1CE4E5B9 & wrap)
    x = np.uint64(key) ^ (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x94D049BB133111EB)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def ladder_scores(inputs: ScoreInputs) -> Float32:
    """[N - w] 1 for the cells that the ladder keeps in this layer, 0 for the others (LaCache)."""
    p = inputs.params
    kept, _ = p.ladder.compact(p.layer, inputs.n_text, p.cursor)
    scores = np.zeros(inputs.n_text, dtype=np.float32)
    scores[kept] = 1.0
    return scores[: inputs.n_past]


def key_norm_scores(k: Tensor) -> Tensor:
    """[Hk, N] minus the length of the key: short keys draw attention (L2-norm, Devoto et al., 2024)."""
    scores: Tensor = -k.norm(dim=-1)
    return scores


def key_diff_scores(k: Tensor) -> Tensor:
    """[Hk, N] minus the cosine between a key and the mean of the unit keys (KeyDiff, Park et al., 2025)."""
    unit = torch.nn.functional.normalize(k, dim=-1)
    scores: Tensor = -torch.nn.functional.cosine_similarity(unit, unit.mean(dim=1, keepdim=True), dim=-1)
    return scores
