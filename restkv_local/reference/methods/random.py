"""A reproducible random choice: uniform in [0, 1), a function of seed, layer, KV head and position alone (splitmix64's
finaliser)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..compiled import compiled
from .rows import Queryless

if TYPE_CHECKING:
    from ..inputs import Float32, ScoreInputs
    from ..params import ScoreParams


def literal(inputs: ScoreInputs) -> Float32:
    """[Hk, N - w] numbers of the cells, by their positions."""
    p, at = inputs.params, inputs.positions()[:, : inputs.n_past]
    return np.stack([numbers(p, p.head_kv + head, at[head]) for head in range(inputs.n_kv_heads)])


def numbers(params: ScoreParams, kv_head: int, positions: npt.NDArray[np.int64]) -> Float32:
    """[n] the number of each position."""
    wrap = 2**64 - 1
    key = params.seed ^ (params.layer * 0x9E3779B97F4A7C15 & wrap) ^ ((kv_head + 1) * 0xBF58476D1CE4E5B9 & wrap)
    x = np.uint64(key) ^ (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x94D049BB133111EB)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def lean(inputs: ScoreInputs, kv_head: int, out: Float32) -> None:
    """The same of one KV head."""
    p = inputs.params
    at = np.ascontiguousarray(inputs.positions()[kv_head, : inputs.n_past])
    key = p.layer * 0x9E3779B97F4A7C15 ^ (p.head_kv + kv_head + 1) * 0xBF58476D1CE4E5B9
    number_row(np.uint64((p.seed ^ key) % 2**64), at, out)


@compiled()
def number_row(key: np.uint64, at: npt.NDArray[np.int64], out: Float32) -> None:
    """Counter-based: every number from its position alone."""
    one = np.uint64(1)
    for j in range(len(out)):
        x = key ^ (np.uint64(at[j]) + one) * np.uint64(0x94D049BB133111EB)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        out[j] = np.float32(np.float64(x >> np.uint64(40)) * 2.0**-24)


REFERENCE = Queryless(literal, lean)
