"""What the stages are checked on: small random layers of fixed seeds, one case per option and cache type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..native.kernels import Packed

# ggml numbers of the types that a cache can have.
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
_BLOCK = 32  # values of a block of q8_0 and q4_0
_GAP = 3  # positions per cell, about, of cells with gaps


@dataclass(frozen=True)
class ScoreCase:
    """A layer to be scored. params: of a score function; type: of its cache; quick: in the quick check too.

    tile: largest intermediate tensor on the device, in floats; 0: the default.
    """

    name: str
    params: dict[str, Any]
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    cells: int = 320
    window: int = 16
    type: str = "f16"
    sinks: bool = False
    gaps: bool = False
    tile: int = 0
    quick: bool = False

    @property
    def all_params(self) -> dict[str, Any]:
        """With budget and window."""
        return {"budget": 96 + self.window, "window": self.window, "reduce": "mean"} | self.params


@dataclass(frozen=True)
class MoveCase:
    """Rows to be moved."""

    name: str
    type: str
    kv_heads: int = 2
    head_size: int = 64
    cells: int = 300
    kept: int = 120
    tile: int = 0
    quick: bool = False


def _restkv(**params: Any) -> dict[str, Any]:
    # a small scale, so that the drift acts
    return {"method": "restkv", "scale": 30, **params}


SCORES: tuple[ScoreCase, ...] = (
    ScoreCase("snapkv", {"method": "snapkv", "pooling": "avgpool", "kernel": 5}, quick=True),
    ScoreCase("snapkv, mqa, f32", {"method": "snapkv", "pooling": "maxpool", "kernel": 7}, kv_heads=1, type="f32"),
    ScoreCase("restkv, gqa", _restkv(), quick=True),
    ScoreCase("restkv, mha", _restkv(), kv_heads=4),
    ScoreCase("restkv, mqa", _restkv(), kv_heads=1),
    ScoreCase("restkv, heads of 128", _restkv(scale=2000), heads=8, head_size=128, cells=1100, window=32),
    ScoreCase("restkv, heads of 96", _restkv(), head_size=96),
    ScoreCase("restkv, in tiles", _restkv(), heads=6, kv_heads=3, tile=20_000),
    ScoreCase("restkv, gaps", _restkv(), gaps=True),
    ScoreCase("restkv, soft-cap and sinks", _restkv(softcap=20.0), sinks=True, quick=True),
    ScoreCase("restkv, q8_0", _restkv(), type="q8_0", quick=True),
    ScoreCase("restkv, q4_0", _restkv(), type="q4_0"),
    ScoreCase("restkv, bf16", _restkv(), type="bf16"),
    ScoreCase("restkv, f32", _restkv(), type="f32"),
    ScoreCase("restkv, without W_o", _restkv(use_wo=False, pooling="maxpool", kernel=7)),
    ScoreCase("restkv, mean of rows, max of heads", _restkv(use_ema=False, pooling="none", reduce="max")),
    ScoreCase("restkv, tau 0.5", _restkv(tau=0.5, alpha=None)),
    ScoreCase("restkv, inverted ema", _restkv(rows="inverted-ema")),
    ScoreCase("restkv, largest row", _restkv(indicator="attention-value-norm", rows="max", reduce="max")),
)

MOVES: tuple[MoveCase, ...] = (
    MoveCase("f16", "f16", quick=True),
    MoveCase("f16, one KV head", "f16", kv_heads=1),
    MoveCase("f16, eight KV heads of 128", "f16", kv_heads=8, head_size=128, cells=1100, kept=500),
    MoveCase("f16, in pieces", "f16", tile=2_000),
    MoveCase("q8_0", "q8_0", quick=True),
    MoveCase("q4_0", "q4_0"),
    MoveCase("bf16", "bf16"),
    MoveCase("f32", "f32"),
)


@dataclass(frozen=True)
class Arrays:
    """The arrays of a ScoreCase. k and v are what the packed rows hold, as float32."""

    values: dict[str, Any]
    packed: Packed
    extras: dict[str, Any] = field(default_factory=dict)


def arrays_of(case: ScoreCase) -> Arrays:
    """A random layer with a sink at its first cell and attention that moves along the text: the same every time."""
    rng = np.random.default_rng(_seed(case.name))
    d, n = case.head_size, case.cells
    lengths = np.exp(0.5 * rng.standard_normal((case.kv_heads, n, 1)))
    packed_k, k = pack(rng.standard_normal((case.kv_heads, n, d)).astype(np.float32), case.type)
    packed_v, v = pack((rng.standard_normal((case.kv_heads, n, d)) * lengths).astype(np.float32), case.type)
    kv_of = np.arange(case.heads) // (case.heads // case.kv_heads)
    q = rng.standard_normal((case.heads, case.window, d)) + 4.0 / np.sqrt(d) * k[kv_of, :1]
    walk = rng.random((case.heads, 1)) * n + rng.standard_normal((case.heads, 1)) * np.arange(case.window) * 3
    q += 3.0 / np.sqrt(d) * k[kv_of[:, None], walk.astype(int) % n]
    wo = rng.standard_normal((2 * d, case.heads * d)) / np.sqrt(case.heads * d)
    extras: dict[str, Any] = {}
    if case.sinks:
        extras["sinks"] = rng.standard_normal(case.heads).astype(np.float32) * 2
    if case.gaps:
        steps = rng.integers(1, 2 * _GAP, (case.kv_heads, n))
        extras["pos"] = np.cumsum(steps, axis=1)
    values = {"q_win": q.astype(np.float32), "k": k, "v": v, "wo": wo.astype(np.float32)}
    return Arrays(values, Packed(TYPES[case.type], packed_k, packed_v), extras)


def pack(x: npt.NDArray[np.float32], type_: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Rows [.., d] in a ggml type as bytes [.., bytes], and the values that these hold."""
    if type_ == "f32":
        return _bytes(x), x
    if type_ == "f16":
        half = x.astype(np.float16)
        return _bytes(half), half.astype(np.float32)
    if type_ == "bf16":
        top = (x.view(np.uint32) >> 16).astype(np.uint16)  # cut, not rounded: any value does
        return _bytes(top), (top.astype(np.uint32) << 16).view(np.float32)
    most, low = (127, -127) if type_ == "q8_0" else (7, -8)
    blocks = x.reshape(*x.shape[:-1], -1, _BLOCK)
    scale = (np.abs(blocks).max(axis=-1, keepdims=True) / most).astype(np.float16)
    q = np.clip(np.rint(blocks / np.maximum(scale, np.float16(1e-4)).astype(np.float32)), low, most).astype(np.int8)
    if type_ == "q8_0":
        body = q.view(np.uint8)
    else:  # a byte holds value i and, in its upper half, value i + 16, each plus 8
        nibbles = (q + 8).astype(np.uint8)
        body = nibbles[..., : _BLOCK // 2] | (nibbles[..., _BLOCK // 2 :] << 4)
    rows = np.concatenate([_bytes(scale), body], axis=-1).reshape(*x.shape[:-1], -1)
    return np.ascontiguousarray(rows), (q * scale.astype(np.float32)).reshape(x.shape).astype(np.float32)


def rows_of(case: MoveCase) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """K and V [cells, kv_heads, bytes] as in a cache, and kept [kv_heads, kept]: another set in each head."""
    rng = np.random.default_rng(_seed(case.name))
    rows = [
        pack(rng.standard_normal((case.cells, case.kv_heads, case.head_size)).astype(np.float32), case.type)[0]
        for _ in range(2)
    ]
    kept = np.array([np.sort(rng.permutation(case.cells)[: case.kept]) for _ in range(case.kv_heads)], dtype=np.int32)
    return rows[0], rows[1], kept


def _bytes(x: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(x).view(np.uint8)


def _seed(name: str) -> list[int]:
    return list(name.encode())
