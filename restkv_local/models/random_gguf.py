"""Writes models with random weights: real shapes, real block formats, nothing downloaded.

The file is written tensor by tensor in pieces, so memory does not depend on its size. Matrices repeat a pool of random
blocks, each tensor from another place and each row shifted; their scales are those that `shapes.tensors` asks for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..plan.machine import size
from .shapes import BLOCKS, Shape, Tensor, can_have, data_bytes, shape_of, tensors

Blocks = npt.NDArray[np.uint8]

# Special tokens and the 256 bytes come before all other pieces.
MIN_VOCAB = 3 + 256
# Blocks of the pool: a prime, so that no two rows of a matrix start at the same block.
_POOL = 65521
# Bytes written at a time.
_PIECE = 8 << 20
# Free space that stays.
_SPARE = 256 << 20


def write(
    path: str | os.PathLike[str],
    name: str,
    *,
    n_layer: int | None = None,
    kind: str = "q4_0",
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a model of a shape of `shapes.SHAPES` and return its path; the same seed gives the same bytes.

    n_layer: None for all. kind: type of every matrix, "q4_0" or "q4_k". on_progress(done, total): bytes.
    Raises ConfigError for an unknown shape or type, a wrong number of layers, and a disk without the space. A file in
    the making has another name, so that one that was cut short is never taken for a model.
    """
    shape, layers = shape_of(name, n_layer)
    if kind not in BLOCKS:
        raise ConfigError(f"there is no type '{kind}' for a random model; known are {', '.join(BLOCKS)}")
    if not can_have(shape, kind):
        raise ConfigError(f"the rows of {name} are no whole blocks of {BLOCKS[kind][0]} values: use type 'q4_0'")
    target = Path(path)
    needs = file_bytes(shape, layers, kind)
    free = shutil.disk_usage(target.resolve().parent).free
    if needs + _SPARE > free:
        raise ConfigError(
            f"{target.name} takes {size(needs)} and {size(free)} are free in {target.resolve().parent}; "
            "write fewer --layers, or to another disk"
        )
    part = target.with_name(target.name + ".part")
    try:
        _write(part, shape, layers, kind, seed, on_progress or (lambda done, total: None))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def file_bytes(shape: Shape, n_layer: int, kind: str) -> int:
    """Bytes of the whole file, a little too many: names and settings are rounded up."""
    words = sum(len(token.encode()) for token in vocabulary(shape.n_vocab))
    return data_bytes(shape, n_layer, kind) + words + 16 * shape.n_vocab + 128 * (16 * n_layer) + 65536


def vocabulary(n_vocab: int) -> list[str]:
    """The pieces of a made-up SentencePiece tokenizer: three special ones, the 256 bytes, a space, letters, pairs of
    letters, and as many more as are wanted. Any text can be written with it."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    pieces = ["\u2581", *letters] + [a + b for a in letters for b in letters]
    pieces += [f"piece{n}" for n in range(max(0, n_vocab - MIN_VOCAB - len(pieces)))]
    return tokens + pieces[: n_vocab - MIN_VOCAB]


def add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """Put the tokenizer of `vocabulary` into a file."""
    special = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    n_pieces = n_vocab - MIN_VOCAB
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary(n_vocab))
    writer.add_token_scores([0.0] * MIN_VOCAB + [-float(rank) for rank in range(n_pieces)])
    writer.add_token_types(special + [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * n_pieces)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def _write(
    path: Path, shape: Shape, n_layer: int, kind: str, seed: int, on_progress: Callable[[int, int], None]
) -> None:
    rng = np.random.default_rng([seed, sum(shape.name.encode())])
    writer = gguf.GGUFWriter(str(path), shape.arch)
    try:
        _add_settings(writer, shape, n_layer)
        add_tokenizer(writer, shape.n_vocab)
        types = gguf.GGMLQuantizationType
        everything = list(tensors(shape, n_layer))
        for tensor in everything:
            of = types.F32 if len(tensor.size) == 1 else types[kind.upper()]
            writer.add_tensor_info(tensor.name, tensor.size, np.dtype(np.float32), tensor.n_bytes(kind), raw_dtype=of)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        out = writer.fout[0]
        writer.write_padding(out, out.tell())
        pool = _pool(kind, rng)
        done, total = 0, data_bytes(shape, n_layer, kind)
        on_progress(done, total)
        for tensor in everything:
            for piece in _pieces(tensor, kind, pool, rng):
                out.write(piece)
                done += len(piece)
                on_progress(done, total)
            writer.write_padding(out, tensor.n_bytes(kind))
        on_progress(total, total)
    finally:
        writer.close()


def _add_settings(writer: gguf.GGUFWriter, shape: Shape, n_layer: int) -> None:
    writer.add_name(f"random weights, shape of {shape.name}")
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_base)


def _pieces(tensor: Tensor, kind: str, pool: Blocks, rng: np.random.Generator) -> Iterator[bytes]:
    """The bytes of a tensor, some megabytes at a time."""
    if len(tensor.size) == 1:
        values = np.array(tensor.values, dtype=np.float32)
        if not tensor.values:
            values = (tensor.mean + tensor.std * rng.standard_normal(tensor.size)).astype(np.float32)
        if tensor.signs:
            values *= rng.choice(np.array([-1.0, 1.0], dtype=np.float32), tensor.size)
        yield values.astype("<f4").tobytes()
        return
    n_rows, n_columns = tensor.size
    per_row = n_columns // BLOCKS[kind][0]
    std = np.repeat(np.array(tensor.sharpness) * tensor.std, n_rows // len(tensor.sharpness))
    at = int(rng.integers(len(pool)))
    step = max(1, _PIECE // (per_row * pool.shape[1]))
    for first in range(0, n_rows, step):
        rows = min(step, n_rows - first)
        blocks = np.take(pool, np.arange(at, at + rows * per_row), axis=0, mode="wrap")
        at = (at + rows * per_row) % len(pool)
        _scale(blocks, kind, np.repeat(std[first : first + rows], per_row))
        yield blocks.tobytes()


# ---- blocks (ggml/src/ggml-common.h of llama.cpp) ----------------------------------------------


def _pool(kind: str, rng: np.random.Generator) -> Blocks:
    """Random blocks [_POOL, bytes of a block] of mean 0 and standard deviation 1."""
    pool = rng.integers(0, 256, (_POOL, BLOCKS[kind][1]), dtype=np.uint8)
    if kind == "q4_0":
        # f16 d, 32 numbers q of 4 bits: d (q - 8). Their mean is -d / 2; with both signs of d it vanishes.
        sign = rng.choice([-1.0, 1.0], _POOL)
        _put(pool, 0, sign * rng.uniform(0.6, 1.4, _POOL))
    else:
        # f16 d and dmin, 8 pairs (sc, m) of 6 bits, 256 numbers q of 4 bits: d sc q - dmin m. With m = sc and
        # dmin = 7.5 d that is d sc (q - 7.5), of mean 0. Small sc, so that d is no subnormal number, which a device may
        # take for 0.
        sc = rng.integers(6, 16, (_POOL, 8), dtype=np.uint8)
        pool[:, 4:12] = np.tile(sc[:, :4], 2)  # the low 6 bits of the first four pairs; nothing is above 15
        pool[:, 12:16] = sc[:, 4:] | sc[:, 4:] << 4
        d = rng.uniform(0.6, 1.4, _POOL)
        _put(pool, 0, d)
        _put(pool, 2, 7.5 * d)
    values = gguf.quants.dequantize(pool, gguf.GGMLQuantizationType[kind.upper()])
    _scale(pool, kind, np.full(_POOL, 1.0 / values.std()))
    return pool


def _scale(blocks: Blocks, kind: str, factors: npt.NDArray[np.float64]) -> None:
    """Multiply the values of each block."""
    for at in (0,) if kind == "q4_0" else (0, 2):
        _put(blocks, at, _get(blocks, at) * factors)


def _get(blocks: Blocks, at: int) -> npt.NDArray[np.float64]:
    halves: Any = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")
    return np.asarray(halves[:, 0], dtype=np.float64)


def _put(blocks: Blocks, at: int, values: npt.NDArray[np.float64]) -> None:
    blocks[:, at : at + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)
