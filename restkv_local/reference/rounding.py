"""What low-precision storage does to numbers: KV cache types, activations of quantized weights, Hadamard rotation.

llama.cpp stores K and V in the type of the cache and, before a product with a quantized weight, rounds the activations
to 8 bits. A float32 reference reproduces both by rounding and going on in float32. Sources: ggml-quants.c
(quantize_row_q8_0, q8_1, q8_K), llama-kv-cache.cpp (attn_rot_k, attn_rot_v).
"""

from __future__ import annotations

import math
from functools import lru_cache

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Type

from ..errors import ConfigError

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
# Rows of a batch from which ggml-cpu's flash attention works on float32 tiles (GGML_FA_TILE_Q in ggml-cpu/common.h).
FLASH_TILE = 64
_BLOCK = 32
_BLOCK_K = 256

# The type that ggml rounds activations to, for each type of weight (vec_dot_type of its CPU backend).
ACTIVATION_OF_WEIGHT = {
    Type.F32: "f32", Type.F16: "f16", Type.BF16: "bf16",
    Type.Q8_0: "q8", Type.Q4_0: "q8", Type.Q5_0: "q8", Type.Q4_1: "q8", Type.Q5_1: "q8", Type.IQ4_NL: "q8",
    Type.Q2_K: "q8k", Type.Q3_K: "q8k", Type.Q4_K: "q8k", Type.Q5_K: "q8k", Type.Q6_K: "q8k", Type.IQ4_XS: "q8k",
}  # fmt: skip


def round_activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    """x [..., n] rounded as ggml does before a dot product; kind is a value of ACTIVATION_OF_WEIGHT."""
    if kind == "f32":
        return x
    if kind == "f16":
        return x.to(torch.float16).to(torch.float32)
    if kind == "bf16":
        return x.to(torch.bfloat16).to(torch.float32)
    if kind == "q8":
        blocks = x.reshape(-1, _BLOCK)
        peak = blocks.abs().amax(dim=1, keepdim=True)
        step = (peak / 127.0).to(torch.float16).to(torch.float32)
        inverse = torch.where(peak > 0, 127.0 / peak, torch.zeros_like(peak))
        return (torch.round(blocks * inverse) * step).reshape(x.shape)
    if kind == "q8k":
        blocks = x.reshape(-1, _BLOCK_K)
        at = blocks.abs().argmax(dim=1, keepdim=True)
        signed = blocks.gather(1, at)
        inverse = torch.where(signed != 0, -127.0 / signed, torch.zeros_like(signed))
        codes = torch.round(blocks * inverse).clamp(max=127.0)
        step = torch.where(inverse != 0, 1.0 / inverse, torch.zeros_like(inverse))
        return (codes * step).reshape(x.shape)
    raise ConfigError(f"activations cannot be rounded to '{kind}'; known are f32, f16, bf16, q8, q8k")


@lru_cache(maxsize=8)
def hadamard(n: int) -> torch.Tensor:
    """The orthonormal Walsh-Hadamard matrix [n, n], its own inverse; n is a power of two."""
    if n < 1 or n & (n - 1):
        raise ConfigError(f"a Hadamard matrix needs a power of two; got {n}")
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix / math.sqrt(n)


class CacheType:
    """How one of K or V is stored in the cache.

    name: one of CACHE_TYPES. head_dim: values per row. is_key: K and V rotate in blocks of different size.
    A quantized type rotates the row first (when head_dim is a multiple of 64): K by the largest power of two that
    divides head_dim, V in blocks of 64. n_rot: another size of those blocks, 0 for none; None: these.
    """

    def __init__(self, name: str, head_dim: int, *, is_key: bool, n_rot: int | None = None) -> None:
        if name not in CACHE_TYPES:
            raise ConfigError(f"kv_type must be one of {', '.join(CACHE_TYPES)}; got '{name}'")
        self.name = name
        self.quantized = name in ("q8_0", "q4_0")
        if self.quantized and head_dim % _BLOCK:
            raise ConfigError(f"kv_type {name} needs a head size that is a multiple of {_BLOCK}; it is {head_dim}")
        self.n_rot = n_rot or 0
        if n_rot is None and self.quantized and head_dim % 64 == 0:
            self.n_rot = head_dim & -head_dim if is_key else 64

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., head_dim] in the basis of the cache; the rotation is its own inverse."""
        if not self.n_rot:
            return x
        return (x.reshape(-1, self.n_rot) @ hadamard(self.n_rot)).reshape(x.shape)

    def store(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., head_dim] float32 as it reads back from the cache, in the model's own basis."""
        if self.name == "f32" or x.numel() == 0:  # gguf cannot quantize nothing
            return x
        if not self.quantized:
            return round_activation(x, self.name)
        rotated = self.rotate(x.contiguous())
        qtype = Type.Q8_0 if self.name == "q8_0" else Type.Q4_0
        packed = gguf.quants.quantize(np.ascontiguousarray(rotated.reshape(-1, x.shape[-1]).numpy()), qtype)
        plain = np.ascontiguousarray(gguf.quants.dequantize(packed, qtype), dtype=np.float32)
        return self.rotate(torch.from_numpy(plain).reshape(x.shape))

    def round_query(self, q: torch.Tensor, values: CacheType) -> torch.Tensor:
        """Queries [heads, rows, head_dim] as flash attention on the CPU multiplies them with keys of this type.

        From 64 rows on, float16 keys are multiplied in float32 when the values are float16 too; else q is rounded to
        the partner type of the key.
        """
        tiled = self.name == values.name == "f16" and q.shape[1] >= FLASH_TILE
        if self.name == "f32" or tiled:
            return q
        if not self.quantized:
            return round_activation(q, self.name)
        return self.rotate(round_activation(self.rotate(q.contiguous()), "q8"))
