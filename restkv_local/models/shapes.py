"""Sizes of published models, and the tensors that a file of such a model holds.

Sizes are those of the models' published configurations: `config.json` of meta-llama/Llama-3.1-8B, Qwen/Qwen2.5-7B,
mistralai/Mistral-7B-v0.3, google/gemma-7b, meta-llama/Llama-2-7b-hf, meta-llama/Meta-Llama-3-70B and
HuggingFaceTB/SmolLM2-135M.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import ConfigError

# Values and bytes of one block of the types that a file can be written in.
BLOCKS = {"q4_0": (32, 18), "q4_k": (256, 144)}
DEFAULT_SHAPE, DEFAULT_TYPE = "llama-3.1-8b", "q4_0"
# GGUF pads each tensor to this.
ALIGNMENT = 32

# How sharply query heads attend, in turn: a model whose heads are all alike would make every selection alike.
_SHARPNESS = (0.7, 1.2, 2.0, 3.0)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. n_embd: width; n_ff: of the feed-forward; tied: the head is the embedding matrix; bias: of Q,
    K and V; scaled_rope: frequencies are stretched as Llama 3.1 does."""

    name: str
    arch: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    rope_base: float
    norm_eps: float
    n_ctx_train: int
    tied: bool = False
    bias: bool = False
    scaled_rope: bool = False


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-3.1-8b", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 5e5, 1e-5, 131072, scaled_rope=True),
        Shape("qwen2.5-7b", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 1e6, 1e-6, 131072, bias=True),
        Shape("mistral-7b-v0.3", "llama", 32, 4096, 32, 8, 128, 14336, 32768, 1e6, 1e-5, 32768),
        Shape("gemma-7b", "gemma", 28, 3072, 16, 16, 256, 24576, 256000, 1e4, 1e-6, 8192, tied=True),
        Shape("llama-2-7b", "llama", 32, 4096, 32, 32, 128, 11008, 32000, 1e4, 1e-5, 4096),
        Shape("llama-3-70b", "llama", 80, 8192, 64, 8, 128, 28672, 128256, 5e5, 1e-5, 8192),
        Shape("smollm2-135m", "llama", 30, 576, 9, 3, 64, 1536, 49152, 1e5, 1e-5, 8192, tied=True),
        # No published model: for trying out, on any machine.
        Shape("tiny", "llama", 2, 256, 4, 2, 64, 512, 1024, 1e4, 1e-5, 4096),
    )
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file. size: rows and columns, or one length. A matrix holds blocks with values around 0, and its
    rows take the standard deviations `std` times `sharpness`, one for each equal part of the rows; a vector holds
    float32 values around `mean`, with a random sign where `signs`."""

    name: str
    size: tuple[int, ...]
    std: float
    mean: float = 0.0
    signs: bool = False
    sharpness: tuple[float, ...] = (1.0,)
    values: tuple[float, ...] = ()

    def n_bytes(self, kind: str) -> int:
        """Bytes in a file whose matrices are of type `kind`, without padding."""
        n = math.prod(self.size)
        if len(self.size) == 1:
            return 4 * n
        values, size = BLOCKS[kind]
        return n // values * size


def shape_of(name: str, n_layer: int | None = None) -> tuple[Shape, int]:
    """The shape of that name, and how many of its layers: all, or n_layer. Raises ConfigError."""
    if name not in SHAPES:
        raise ConfigError(f"there is no shape '{name}'; known are {', '.join(SHAPES)}")
    shape = SHAPES[name]
    if n_layer is None:
        return shape, shape.n_layer
    if not 1 <= n_layer <= shape.n_layer:
        raise ConfigError(f"{name} has {shape.n_layer} layers; --layers must be from 1 to {shape.n_layer}")
    return shape, n_layer


def can_have(shape: Shape, kind: str) -> bool:
    """Whether the rows of all matrices are whole blocks of a type."""
    return all(t.size[1] % BLOCKS[kind][0] == 0 for t in tensors(shape, 1) if len(t.size) == 2)


def tensors(shape: Shape, n_layer: int) -> Iterator[Tensor]:
    """Every tensor of the file, in its order; scales keep activations near 1 at any depth."""
    n, unit = shape.n_embd, shape.n_embd**-0.5
    # Gemma multiplies embeddings by sqrt(n_embd), and its head is the same matrix.
    yield Tensor("token_embd.weight", (shape.n_vocab, n), 2.0 * unit if shape.arch == "gemma" else 1.0)
    # Signs differ, else a shared matrix would make every token predict itself.
    yield Tensor("output_norm.weight", (n,), 0.1, mean=1.0, signs=True)
    if not shape.tied:
        yield Tensor("output.weight", (shape.n_vocab, n), 2.5 * unit)
    if shape.scaled_rope:
        factors = rope_factors(shape)
        yield Tensor("rope_freqs.weight", (len(factors),), 0.0, values=factors)
    n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    sharp = tuple(_SHARPNESS[head % len(_SHARPNESS)] for head in range(shape.n_head))
    for layer in range(n_layer):
        at = f"blk.{layer}"
        yield Tensor(f"{at}.attn_norm.weight", (n,), 0.1, mean=1.0)
        yield Tensor(f"{at}.attn_q.weight", (n_q, n), unit, sharpness=sharp)
        yield Tensor(f"{at}.attn_k.weight", (n_kv, n), unit)
        yield Tensor(f"{at}.attn_v.weight", (n_kv, n), unit)
        if shape.bias:
            yield Tensor(f"{at}.attn_q.bias", (n_q,), 0.5)
            yield Tensor(f"{at}.attn_k.bias", (n_kv,), 0.5)
            yield Tensor(f"{at}.attn_v.bias", (n_kv,), 0.5)
        yield Tensor(f"{at}.attn_output.weight", (n, n_q), 2.0 * n_q**-0.5)
        yield Tensor(f"{at}.ffn_norm.weight", (n,), 0.1, mean=1.0)
        yield Tensor(f"{at}.ffn_gate.weight", (shape.n_ff, n), unit)
        yield Tensor(f"{at}.ffn_up.weight", (shape.n_ff, n), unit)
        yield Tensor(f"{at}.ffn_down.weight", (n, shape.n_ff), shape.n_ff**-0.5)


def rope_factors(shape: Shape) -> tuple[float, ...]:
    """What divides each rotation frequency in Llama 3.1: 1 for short waves, 8 for waves longer than the 8,192 positions
    of the first training, and between them a smooth passage (its `rope_scaling`: factor 8, low 1, high 4)."""
    factor, low, high, trained = 8.0, 1.0, 4.0, 8192.0
    found = []
    for i in range(shape.head_dim // 2):
        turns = trained / (2 * math.pi * shape.rope_base ** (2 * i / shape.head_dim))  # while trained positions pass
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1.0 / (share + (1.0 - share) / factor))
    return tuple(found)


def n_weights(shape: Shape, n_layer: int) -> int:
    """Values in all tensors, as model cards count them (the factors of the rotation are none)."""
    return sum(math.prod(t.size) for t in tensors(shape, n_layer) if not t.values)


def data_bytes(shape: Shape, n_layer: int, kind: str) -> int:
    """Bytes of all tensors in the file."""
    return sum(-(-t.n_bytes(kind) // ALIGNMENT) * ALIGNMENT for t in tensors(shape, n_layer))


def bytes_per_cell(shape: Shape, n_layer: int, bytes_per_value: float = 2.0) -> int:
    """K and V of one cell, all layers and KV heads, in bytes; an F16 cache has 2 bytes per value."""
    return int(2 * n_layer * shape.n_head_kv * shape.head_dim * bytes_per_value)
