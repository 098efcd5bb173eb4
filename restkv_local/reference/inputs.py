"""What a score function takes: arrays and their checks, shared by the reference and the native stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..plan.allocation import pyramid_published
from .methods import REFERENCES
from .methods.rows import Attending
from .params import ScoreParams, parse_params

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Scores = tuple[Float32, Float32, Int32, Int32, Int32]

# Odds a / (1 - a) never exceed this: beyond it 1 - a has no digits left in float32.
ODDS_MAX = 1e6
FLT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ScoreInputs:
    """Checked arrays of a score function. H query heads share Hk KV heads; N cells of head size d.

    q: [H, rows, d] float32, the queries of the last cells. k, v: [Hk, N, d] float32 or float16.
    wo: [c, H * d] float32, or None when not used.
    pos: [Hk, N] int64 ascending, or None: 0 .. N-1. sinks: [H] float32 logits of attention sinks, or None.
    """

    params: ScoreParams
    q: Float32
    k: npt.NDArray[Any]
    v: npt.NDArray[Any]
    wo: Float32 | None
    pos: Int64 | None
    sinks: Float32 | None

    @property
    def n_heads(self) -> int:
        return int(self.q.shape[0])

    @property
    def n_kv_heads(self) -> int:
        return int(self.k.shape[0])

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.n_heads // self.n_kv_heads

    @property
    def n_cells(self) -> int:
        return int(self.k.shape[1])

    @property
    def n_rows(self) -> int:
        """Queries that score."""
        return int(self.q.shape[1])

    @property
    def n_past(self) -> int:
        """Cells that may go: all but the window (and the guide behind it)."""
        return self.n_cells - self.params.tail

    @property
    def head_size(self) -> int:
        return int(self.k.shape[2])

    @property
    def attn_scale(self) -> float:
        return self.params.attn_scale or 1.0 / math.sqrt(self.head_size)

    @property
    def row_weights(self) -> npt.NDArray[np.float64]:
        """[rows] weights, oldest first, as the method has them: of an average, or of a plain sum."""
        method = REFERENCES[self.params.method]
        if isinstance(method, Attending) and method.row_weights is not None:
            return method.row_weights(self)
        return np.ones(self.n_rows)

    @property
    def visible(self) -> Int64:
        """[rows] how many of the N cells each query sees: those up to its own."""
        seen = np.arange(self.n_cells - self.n_rows, self.n_cells) + 1
        if self.params.traits.votes and self.params.official_mask:
            seen[: max(self.n_rows - self.params.window, 0)] = self.n_cells
        return seen

    @property
    def n_text(self) -> int:
        """Cells without a guide behind the window."""
        return self.n_past + self.params.window

    @property
    def n_drift(self) -> int:
        """Most attended cells per row that vote on the drift: the plain budget, whatever a pyramid gives."""
        return min(self.params.budget - self.params.window, self.n_past)

    @property
    def n_keep(self) -> int:
        """Past cells that survive (with allocation ada: per head, on average); all when fewer than the budget."""
        p = self.params
        if p.n_select is not None:
            return min(p.n_select, self.n_past)
        if not p.pyramid or p.layer_idx is None or p.num_layers is None:
            return self.n_drift
        flat = p.allocation == "pyramidkv"
        n_cells = self.n_past + p.window
        return pyramid_published(p.budget, p.window, n_cells, p.num_layers, p.beta, flat=flat)[p.layer_idx]

    def positions(self) -> Int64:
        """[Hk, N] text positions."""
        if self.pos is not None:
            return self.pos
        return np.broadcast_to(np.arange(self.n_cells, dtype=np.int64), (self.n_kv_heads, self.n_cells))

    def drift_acts(self, kv_head: int) -> bool:
        """Whether the drift can change the smoothing: |drift| below `scale` cannot, and it never exceeds the span of
        the positions. Without `pos` the published formula is followed to the letter (a drift of 0 shifts by 1)."""
        if self.pos is None:
            return True
        return int(self.pos[kv_head, -1] - self.pos[kv_head, 0]) > self.params.scale


def prepare(q_win: Any, k: Any, v: Any, wo: Any, pos: Any, sinks: Any, params: dict[str, Any]) -> ScoreInputs:
    """Check everything a caller passes to a score function; ConfigError says what does not fit."""
    p = parse_params(params)
    q = _array("q_win", q_win, 3)
    keys = _array("k", k, 3, keep_half=True)
    values = _array("v", v, 3, keep_half=True)
    if keys.shape != values.shape or keys.dtype != values.dtype:
        raise ConfigError(
            f"k and v must have the same shape and type; got {keys.dtype}{list(keys.shape)} and "
            f"{values.dtype}{list(values.shape)}"
        )
    heads, rows, d = q.shape
    kv_heads, n, d_k = keys.shape
    if 0 in (heads, kv_heads, d) or d != d_k or heads % kv_heads:
        raise ConfigError(
            "q_win must be [heads, rows, d] and k [kv_heads, cells, d], heads a multiple of kv_heads; "
            f"got {list(q.shape)} and {list(keys.shape)}"
        )
    if n <= p.tail:
        raise ConfigError(f"there must be more cells than the {p.tail} that are not scored; got {n}")
    return ScoreInputs(
        params=p,
        q=np.ascontiguousarray(q[:, rows - _rows_used(p, rows, n) :]),
        k=keys,
        v=values,
        wo=_check_wo(wo, p, heads * d),
        pos=_check_pos(pos, kv_heads, n),
        sinks=_check_sinks(sinks, heads),
    )


def _rows_used(p: ScoreParams, rows: int, n: int) -> int:
    """How many of the given queries score: the window's, the last one, or all."""
    if p.traits.queries in ("last", "all"):
        if not 1 <= rows <= n:
            raise ConfigError(f"q_win must hold from 1 to {n} queries, of the last cells; it has {rows} rows")
        return 1 if p.traits.queries == "last" else rows
    rows = min(rows, p.window)
    if p.traits.queries == "none":
        return rows
    if rows < (p.window if p.n_tail is None else 1 + p.adaptive) or (p.adaptive and rows % 2):
        raise ConfigError(f"q_win must hold the last {p.window} queries (the window); it has {rows} rows")
    return rows


def _array(name: str, value: Any, ndim: int, keep_half: bool = False) -> npt.NDArray[Any]:
    array = np.asarray(value)
    if array.ndim != ndim or not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(
            f"{name} must be an array of {ndim} axes of floats; got {array.dtype} with shape {list(array.shape)}"
        )
    if not (keep_half and array.dtype == np.float16):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ConfigError(f"{name} holds values that are not finite; check where it comes from")
    return np.ascontiguousarray(array)


def _check_wo(wo: Any, params: ScoreParams, width: int) -> Float32 | None:
    if not params.reads_wo:
        return None
    if wo is None:
        raise ConfigError("wo is needed with use_wo; pass the output projection or set use_wo=False")
    array: Float32 = _array("wo", wo, 2)
    if array.shape[0] == 0 or array.shape[1] != width:
        raise ConfigError(f"wo must be [c, heads * d] = [c, {width}]; got {list(array.shape)}")
    return array


def _check_pos(pos: Any, kv_heads: int, n: int) -> Int64 | None:
    if pos is None:
        return None
    array = np.asarray(pos)
    if array.shape != (kv_heads, n) or not np.issubdtype(array.dtype, np.integer):
        raise ConfigError(f"pos must be whole numbers of shape [kv_heads, cells] = [{kv_heads}, {n}]")
    positions = np.ascontiguousarray(array, dtype=np.int64)
    if positions.min() < 0 or positions.max() >= 2**31 or (np.diff(positions, axis=1) <= 0).any():
        raise ConfigError("pos must rise from cell to cell and fit 0 .. 2^31 - 1; sort the cells by position")
    return positions


def _check_sinks(sinks: Any, heads: int) -> Float32 | None:
    if sinks is None:
        return None
    array: Float32 = _array("sinks", sinks, 1)
    if array.shape != (heads,):
        raise ConfigError(f"sinks must hold one logit per query head ({heads}); got {list(array.shape)}")
    return array
