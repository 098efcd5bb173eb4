"""Scores of the methods that look at no query, one KV head at a time; see queryless.py for what each means."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .compiled import compiled
from .inputs import Float32, ScoreInputs

TINY = 1e-12  # a key of length 0 points nowhere


def queryless(inputs: ScoreInputs) -> Float32:
    """[H, N - w] scores."""
    p, past = inputs.params, inputs.n_past
    raw = np.empty((inputs.n_kv_heads, past), dtype=np.float32)
    for head in range(inputs.n_kv_heads):
        if p.method in ("streamingllm", "fifo"):
            raw[head] = np.arange(past, dtype=np.float32) * (-1 if p.method == "streamingllm" else 1)
        elif p.method == "random":
            at = np.ascontiguousarray(inputs.positions()[head, :past])
            key = p.layer * 0x9E3779B97F4A7C15 ^ (p.head_kv + head + 1) * 0xBF58476D1CE4E5B9
            random_row(np.uint64((p.seed ^ key) % 2**64), at, raw[head])
        elif p.method == "lacache":
            kept, _ = p.ladder.compact(p.layer, inputs.n_text, p.cursor)
            raw[head] = np.isin(np.arange(past), kept)
        elif p.method == "knorm":
            k = inputs.k[head, :past].astype(np.float32)
            raw[head] = -np.sqrt(np.einsum("jd,jd->j", k, k, dtype=np.float64))
        else:
            key_diff_row(inputs.k[head, : inputs.n_text].astype(np.float32), raw[head])
    return np.repeat(raw, inputs.group, axis=0)


@compiled()
def random_row(key: np.uint64, at: npt.NDArray[np.int64], out: Float32) -> None:
    """Counter-based uniform numbers: splitmix64's finaliser over seed, layer, KV head and position."""
    one = np.uint64(1)
    for j in range(len(out)):
        x = key ^ (np.uint64(at[j]) + one) * np.uint64(0x94D049BB133111EB)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        out[j] = np.float32(np.float64(x >> np.uint64(40)) * 2.0**-24)


@compiled(reorder=True)
def key_diff_row(keys: Float32, out: Float32) -> None:
    """out[j] = minus the cosine of key j and the mean of the unit keys; keys [n, d], out the first of them."""
    n, d = keys.shape
    mean = np.zeros(d)
    length = np.empty(n)
    for j in range(n):
        square = 0.0
        for c in range(d):
            square += np.float64(keys[j, c]) ** 2
        length[j] = max(np.sqrt(square), TINY)
        for c in range(d):
            mean[c] += keys[j, c] / length[j]
    norm = max(np.sqrt(np.sum(mean * mean)), TINY)
    for j in range(len(out)):
        dot = 0.0
        for c in range(d):
            dot += keys[j, c] * mean[c]
        out[j] = np.float32(-dot / (length[j] * norm))
