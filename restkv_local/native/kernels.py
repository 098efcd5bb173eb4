"""The native stages on host arrays: what an eviction computes inside llama.cpp, callable from Python."""

from __future__ import annotations

import ctypes as C
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..errors import ConfigError
from ..plan.allocation import pad_sets
from ..reference.inputs import Float32, Int32, ScoreInputs, Scores, prepare
from ..reference.select import head_shares, reduce_heads
from .params import scoring

# Prefix of a backend that runs the stages as graphs of ggml on a device: "graph:CPU", "graph:CUDA0".
GRAPH = "graph:"


def score(
    q_win: Any,
    k: Any,
    v: Any,
    wo: Any = None,
    *,
    backend: str = "cpu",
    pos: Any = None,
    sinks: Any = None,
    n_threads: int = 0,
    **params: Any,
) -> Scores:
    """As `restkv_local.reference.score`, computed by the patched llama.cpp library.

    Same arguments and result; k and v may also be float16, and are then read as such. backend: "cpu", or "graph:" and
    the name of a device of ggml ("graph:CPU", "graph:CUDA0"), which then runs the stages as graphs. n_threads: 0 uses
    all cores.

    Raises ConfigError when a parameter or a shape does not fit or there is no such device, ModelError when these
    settings have no graph or the device lacks an operation, LibraryError when the library is missing.
    """
    if backend != "cpu" and not (backend.startswith(GRAPH) and len(backend) > len(GRAPH)):
        raise ConfigError(f"backend must be 'cpu' or '{GRAPH}' and the name of a device; got {backend!r}")
    device = None if backend == "cpu" else backend.removeprefix(GRAPH)
    inputs = prepare(q_win, k, v, wo, pos, sinks, params)
    p = inputs.params
    for name in ("n_tail", "head_kv"):
        if getattr(p, name):
            raise ConfigError(f"{name} works in restkv_local.reference only; leave it out")
    raw, smoothed, indices, kernels, shifts = run_stages(inputs, n_threads, device)
    if p.mean_rows:
        raw, smoothed = raw / np.float32(inputs.n_rows), smoothed / np.float32(inputs.n_rows)
    if p.ada:
        rows = reduce_heads(smoothed, inputs)
        shares = share(rows, inputs) if p.allocation == "ada" else head_shares(rows, inputs)
        indices = pad_sets([select(row, n) for row, n in zip(rows, shares, strict=True)])
    elif inputs.n_keep != indices.shape[1]:
        # a pyramid's share: the stages select budget - window cells, and the drift needs that plain budget
        indices = np.stack([select(row, inputs.n_keep) for row in reduce_heads(smoothed, inputs)])
    return raw, smoothed, indices, kernels, shifts


@dataclass(frozen=True)
class Packed:
    """Keys and values as the rows of a cache: ggml type, k and v [kv_heads, N, bytes of a row] uint8."""

    type: int
    k: npt.NDArray[np.uint8]
    v: npt.NDArray[np.uint8]


def run_stages(
    inputs: ScoreInputs, n_threads: int, device: str | None = None, tile_floats: int = 0, packed: Packed | None = None
) -> Scores:
    """One call of restkv_score on checked arrays; with a device, of restkv_score_on.

    tile_floats: largest intermediate tensor on the device, 0 for the default. packed: what is read instead of the
    inputs' k and v.
    """
    p, past = inputs.params, inputs.n_past
    sets = inputs.n_heads if p.reduce is None else inputs.n_kv_heads
    raw = np.empty((inputs.n_heads, past), dtype=np.float32)
    smoothed = np.empty_like(raw)
    kernels = np.empty(inputs.n_heads, dtype=np.int32)
    shifts = np.empty(inputs.n_heads, dtype=np.int32)
    # room for budget - window cells; with fewer past cells than that only the first are filled
    flat = np.empty(sets * (p.budget - p.window), dtype=np.int32)
    args = score_args(inputs, n_threads, packed)
    out = native.ScoreOut(
        raw=address(raw),
        smoothed=address(smoothed),
        kernel_sizes=address(kernels),
        shifts=address(shifts),
        indices=address(flat),
    )
    if device is None:
        status = native.lib().restkv_score(C.byref(args), C.byref(out))
    else:
        status = native.lib().restkv_score_on(C.byref(args), device.encode(), tile_floats, C.byref(out))
    native.check(status)
    if not p.pools:
        kernels.fill(p.kernel)  # what the caller said, which nothing looks at
    return raw, smoothed, flat.reshape(sets, -1), kernels, shifts


def score_args(inputs: ScoreInputs, n_threads: int, packed: Packed | None = None) -> native.ScoreArgs:
    """restkv_score_args of checked arrays, which it keeps alive; packed: as of run_stages."""
    p = inputs.params
    pos = None if inputs.pos is None else np.ascontiguousarray(inputs.pos, dtype=np.int32)
    half = native.GGML_F16 if inputs.k.dtype == np.float16 else native.GGML_F32
    args = native.ScoreArgs(
        params=score_params(inputs, n_threads),
        n_head=inputs.n_heads,
        n_head_kv=inputs.n_kv_heads,
        n_embd_head=inputs.head_size,
        n_cells=inputs.n_cells,
        n_embd_out=0 if inputs.wo is None else inputs.wo.shape[0],
        layer=p.layer,
        n_layer=p.num_layers or 1,
        cursor=p.cursor,
        n_rows=inputs.n_rows,
        all_visible=p.official_mask,
        type_kv=half if packed is None else packed.type,
        attn_scale=p.attn_scale or 0.0,
        softcap=p.softcap,
        q=address(inputs.q),
        k=address(inputs.k if packed is None else packed.k),
        v=address(inputs.v if packed is None else packed.v),
        wo=address(inputs.wo),
        pos=address(pos),
        sinks=address(inputs.sinks),
    )
    args.keep = (inputs, pos, packed)
    return args


def score_params(inputs: ScoreInputs, n_threads: int) -> native.Params:
    """restkv_params of checked score parameters."""
    p = inputs.params
    return native.Params(
        **scoring(p),
        budget=p.budget,
        capacity=0,
        window=p.window,
        kernel=p.kernel if p.pools else 1,
        pooling=native.POOLING[p.pooling],
        use_wo=p.reads_wo,
        n_threads=n_threads,
        sinks=p.start_size,
    )


def select(scores: Float32, n_keep: int) -> Int32:
    """[n_keep] int32: the n_keep largest of scores [n], ties to the lower index, ascending."""
    row = np.ascontiguousarray(scores, dtype=np.float32)
    indices = np.empty(n_keep, dtype=np.int32)
    if n_keep:
        native.check(native.lib().restkv_select(address(row), len(row), n_keep, address(indices)))
    return indices


def share(rows: Float32, inputs: ScoreInputs) -> list[int]:
    """[sets] past cells of every head with allocation "ada", as an eviction shares them out; rows [sets, L]."""
    p = inputs.params
    flat = np.ascontiguousarray(rows, dtype=np.float32)
    lengths = np.full(len(rows), rows.shape[1], dtype=np.uint32)
    out = np.empty(len(rows), dtype=np.uint32)
    mean = p.budget - p.window
    native.check(native.lib().restkv_share(
        address(flat), address(lengths), len(rows), mean, p.floor, p.most or 0, p.normalize, address(out)
    ))  # fmt: skip
    return [int(n) for n in out]


def compact(rows: npt.NDArray[np.uint8], src: Int32, *, offset: int = 0, n_bytes: int | None = None) -> None:
    """Move bytes [offset, offset + n_bytes) of row src[i] to row i, in place; n_bytes None: to the end of the row.

    rows: [cells, bytes] contiguous. src: ascending cells, src[i] >= i, as a selection gives them.
    """
    if rows.ndim != 2 or not rows.flags.c_contiguous or rows.dtype != np.uint8:
        raise ConfigError("rows must be a contiguous array [cells, bytes] of uint8")
    width = rows.shape[1] - offset if n_bytes is None else n_bytes
    if offset < 0 or width < 0 or offset + width > rows.shape[1]:
        raise ConfigError(f"offset and n_bytes must stay inside a row of {rows.shape[1]} bytes")
    cells = np.ascontiguousarray(src, dtype=np.int32)
    if len(cells) and (cells[-1] >= len(rows)):
        raise ConfigError(f"src names cell {cells[-1]}, there are {len(rows)}")
    native.check(native.lib().restkv_compact(address(rows), rows.shape[1], offset, width, address(cells), len(cells)))


def address(array: npt.NDArray[Any] | None) -> int | None:
    """Where an array's data starts; it must outlive the call."""
    return None if array is None else int(array.ctypes.data)
