"""What a score function takes: parameters, arrays and their checks, shared by the reference and the native stages."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ..allocation import pyramid_published
from ..config import (
    BETA_MIN,
    CELLS_MAX,
    DEFAULT_BUDGET,
    INDICATORS,
    KERNEL_MAX,
    METHODS,
    METRIC_MODES,
    POOLINGS,
    REDUCES,
    ROWS,
    WINDOW_MAX,
    EvictConfig,
    in_range,
    one_of,
)
from ..errors import ConfigError
from ..ladder import Ladder, plan_ladder
from ..methods import TRAITS, Traits
from .aliases import translate

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Scores = tuple[Float32, Float32, Int32, Int32, Int32]

# Odds a / (1 - a) never exceed this: beyond it 1 - a has no digits left in float32.
ODDS_MAX = 1e6
FLT_MAX = float(np.finfo(np.float32).max)
# Methods of the literature that are a method and an allocation: how ScoreParams spells them.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "pyramidkv": {"method": "snapkv", "allocation": "pyramidkv"},
    "adakv": {"method": "snapkv", "allocation": "adakv", "mean_rows": True},
}
# The engine's allocations (docs/methods.md) and the published ones, which round in their own way.
SCORE_ALLOCATIONS = ("uniform", "pyramid", "pyramidkv", "ada", "adakv")

_DEFAULTS = EvictConfig()
_INTS = (
    "budget", "window", "kernel", "scale", "seed", "layer", "beta", "layer_idx", "num_layers", "n_tail", "n_select",
    "most", "head_kv", "start_size", "span", "overlap", "cursor",
)  # fmt: skip
_FLOATS = ("alpha", "tau", "attn_scale", "softcap", "floor")
_BOOLS = ("use_wo", "use_norm", "use_ema", "use_pyramid", "normalize", "mean_rows", "official_mask")
_OPTIONAL = (
    "alpha", "reduce", "attn_scale", "layer_idx", "num_layers", "n_tail", "kernel", "pooling", "rows", "span", "most",
    "n_select",
)  # fmt: skip


@dataclass(frozen=True)
class ScoreParams:
    """Parameters of a score function; the defaults are those of `EvictConfig`.

    reduce: None gives one set per query head, "mean" or "max" one set per KV head.
    layer: index of the layer (methods "random" and "lacache").
    rows: as of `EvictConfig`; also "sum", not divided by the number of rows, for the indicators that are attention.
    official_mask: method "h2o": queries before the window see every cell, later ones too, as in the published ReST-KV
        code; False: no query looks ahead. The engine never lets one.
    start_size, span, overlap, num_layers, cursor: the ladder of method "lacache" (restkv_local.ladder).
    attn_scale: factor of the attention logits; None or 0: 1 / sqrt(head size).
    softcap: logits become softcap * tanh(logits / softcap); 0: they stay.
    n_tail: last cells that are not scored, at least `window`; None: `window`. More than that when a guide follows the
        window: its queries are the last rows (fewer than `window` may be left then), its cells take part in the softmax
        and are no candidates.
    allocation: how the budget is shared out (restkv_local.allocation). "pyramid": layer `layer_idx` of `num_layers`
        gets its share as ReST-KV publishes it, with the divisor `beta`; "pyramidkv": as PyramidKV does; the shares
        count past cells, the window comes on top. "ada": the heads of the layer share, `floor` of each share is fixed,
        `normalize` makes heads with scores spread thin yield, and none gets more than `most` past cells; "adakv": as
        published, where rounding may change the total. Sets are then of different sizes: -1 pads the shorter ones.
    use_pyramid: the published name of allocation "pyramid".
    n_select: past cells that survive, when they are not budget - window: the share of a layer.
    mean_rows: the mean of the attention over the window's rows, not its sum (method "snapkv"); no order changes.
    head_kv: number of the first KV head that is passed (method "random").
    The others: see `EvictConfig`.
    """

    method: str = _DEFAULTS.method
    budget: int = DEFAULT_BUDGET
    window: int = _DEFAULTS.window
    alpha: float | None = _DEFAULTS.alpha
    kernel: int = _DEFAULTS.kernel_used
    scale: int = _DEFAULTS.scale
    pooling: str = _DEFAULTS.pooling_used
    metric_mode: str = _DEFAULTS.metric_mode
    use_wo: bool = _DEFAULTS.use_wo
    use_norm: bool = _DEFAULTS.use_norm
    use_ema: bool = _DEFAULTS.use_ema
    tau: float = _DEFAULTS.tau
    reduce: str | None = None
    seed: int = _DEFAULTS.seed
    layer: int = 0
    attn_scale: float | None = None
    softcap: float = 0.0
    n_tail: int | None = None
    use_pyramid: bool = False
    layer_idx: int | None = None
    num_layers: int | None = None
    beta: int = _DEFAULTS.beta
    allocation: str = "uniform"
    floor: float = _DEFAULTS.floor
    normalize: bool = True
    most: int | None = None
    n_select: int | None = None
    mean_rows: bool = False
    head_kv: int = 0
    indicator: str = _DEFAULTS.indicator
    rows: str | None = None
    official_mask: bool = True
    start_size: int = _DEFAULTS.sinks
    span: int | None = None
    overlap: int = 0
    cursor: int = 0

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        if self.method == "full":
            raise ConfigError("method 'full' keeps every cell; choose a method that scores cells")
        one_of("pooling", self.pooling, POOLINGS)
        one_of("metric_mode", self.metric_mode, METRIC_MODES)
        if self.reduce is not None:
            one_of("reduce", self.reduce, REDUCES)
        # StreamingLLM takes no queries: its window is budget - sinks, whatever the budget
        in_range(
            "window", self.window, 1 if self.pools else 0, CELLS_MAX if self.method == "streamingllm" else WINDOW_MAX
        )
        in_range("budget", self.budget, self.window + 1, CELLS_MAX)
        in_range("kernel", self.kernel, 1 if self.pools else 0, KERNEL_MAX)
        if self.pools and self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd; try {self.kernel + 1}")
        one_of("indicator", self.indicator, INDICATORS)
        if self.rows is not None:
            one_of("rows", self.rows, ROWS if self.indicator == "reconstruction" else (*ROWS, "sum"))
        in_range("scale", self.scale, 1, CELLS_MAX)
        if self.adaptive and self.window % 2:
            raise ConfigError(
                f"window must be even for adaptive pooling (the drift compares its two halves); {self.window} is odd"
            )
        if self.alpha is not None and not 0.0 < self.alpha <= 1.0:
            raise ConfigError(f"alpha must be above 0 and at most 1, or None; got {self.alpha}")
        in_range("tau", self.tau, 0.0, 16.0)
        in_range("seed", self.seed, 0, 2**64 - 1)
        in_range("layer", self.layer, 0, 2**31 - 1)
        for name in ("attn_scale", "softcap"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(f"{name} must be a number that is not negative; got {value}")
        if self.n_tail is not None:
            in_range("n_tail", self.n_tail, self.window, CELLS_MAX)
        self._check_allocation()
        if self.traits.per_layer and self.ada:
            raise ConfigError(f"method '{self.method}' keeps one set per layer: it has no heads to share a budget")
        if self.method == "lacache":
            in_range("cursor", self.cursor, 0, self.budget)
            in_range("layer", self.layer, 0, self.ladder.n_layers - 1)

    def _check_allocation(self) -> None:
        one_of("allocation", self.allocation, SCORE_ALLOCATIONS)
        if self.use_pyramid and self.allocation not in ("uniform", "pyramid"):
            raise ConfigError(f"use_pyramid and allocation '{self.allocation}' exclude each other; leave one out")
        if self.pyramid:
            if self.layer_idx is None or self.num_layers is None:
                raise ConfigError("a pyramid needs layer_idx and num_layers; pass both")
            in_range("num_layers", self.num_layers, 2, 2**31 - 1)
            in_range("layer_idx", self.layer_idx, 0, self.num_layers - 1)
        in_range("beta", self.beta, BETA_MIN, CELLS_MAX)
        in_range("floor", self.floor, 0.0, 1.0)
        if self.n_select is not None:
            in_range("n_select", self.n_select, 0, CELLS_MAX)
            if self.pyramid or self.ada:
                raise ConfigError(f"n_select and allocation '{self.allocation}' exclude each other; leave one out")
        if self.most is not None:
            if self.allocation != "ada":
                raise ConfigError("most is the limit of a head with allocation 'ada'; leave it out")
            in_range("most", self.most, self.budget - self.window, CELLS_MAX)
        if self.mean_rows and self.method != "snapkv":
            raise ConfigError("mean_rows works with method 'snapkv' only; leave it out")
        in_range("head_kv", self.head_kv, 0, CELLS_MAX)

    @property
    def pyramid(self) -> bool:
        """Whether the layer has a share of a pyramid of budgets."""
        return self.use_pyramid or self.allocation in ("pyramid", "pyramidkv")

    @property
    def ada(self) -> bool:
        """Whether the heads of the layer share their budgets."""
        return self.allocation in ("ada", "adakv")

    @property
    def adaptive(self) -> bool:
        """Whether the drift of the attention is needed."""
        return self.pooling == "adaptive" and self.pools

    @property
    def traits(self) -> Traits:
        """What the method needs."""
        return TRAITS[self.method]

    @property
    def pools(self) -> bool:
        """Whether scores are smoothed along the text."""
        return self.traits.pools

    @property
    def reads_wo(self) -> bool:
        """Whether the output projection is needed."""
        return self.method == "restkv" and self.use_wo and self.indicator == "reconstruction"

    @property
    def ladder(self) -> Ladder:
        """The ladder of method "lacache"."""
        if self.num_layers is None:
            raise ConfigError("method 'lacache' needs num_layers and layer; pass both")
        in_range("num_layers", self.num_layers, 1, 2**31 - 1)
        return plan_ladder(self.num_layers, self.budget, self.window, self.start_size, self.span, self.overlap)

    @property
    def tail(self) -> int:
        """Last cells that are not scored."""
        return self.window if self.n_tail is None else self.n_tail


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
        """[rows] weights, oldest first: of ReST-KV an average; of the others a sum (TOVA has one row)."""
        rows = self.n_rows
        kind = self.params.rows or ("ema" if self.params.use_ema else "mean")
        if self.params.method != "restkv" or kind == "sum":
            return np.ones(rows)
        if kind == "mean":
            return np.full(rows, 1.0 / rows)
        if kind == "last":
            return np.where(np.arange(rows) == rows - 1, 1.0, 0.0)
        alpha = 2.0 / (rows + 1) if self.params.alpha is None else self.params.alpha
        weights: npt.NDArray[np.float64] = alpha * (1.0 - alpha) ** np.arange(rows - 1, -1, -1, dtype=np.float64)
        weights[0] = (1.0 - alpha) ** (rows - 1)  # the average starts at its first value, not at zero
        return np.ascontiguousarray(weights[::-1]) if kind == "inverted-ema" else weights

    @property
    def visible(self) -> Int64:
        """[rows] how many of the N cells each query sees: those up to its own."""
        seen = np.arange(self.n_cells - self.n_rows, self.n_cells) + 1
        if self.params.method == "h2o" and self.params.official_mask:
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


def parse_params(params: dict[str, Any]) -> ScoreParams:
    """`ScoreParams` of plain or numpy numbers; unknown names are refused. kernel and pooling None, or not given: the
    method's own."""
    params = translate(params)
    known = [field.name for field in fields(ScoreParams)]
    clean: dict[str, Any] = {}
    params = {**params, **_PUBLISHED.get(str(params.get("method")), {})}
    for name, value in params.items():
        if name not in known:
            raise ConfigError(f"unknown parameter '{name}'; known are {', '.join(known)}")
        clean[name] = _number(name, value)
    own = TRAITS.get(clean.get("method", _DEFAULTS.method), Traits())
    for name, default in (("kernel", own.kernel), ("pooling", own.pooling)):
        if clean.get(name) is None:
            clean[name] = default
    return ScoreParams(**clean)


def _number(name: str, value: Any) -> Any:
    if value is None:
        if name in _OPTIONAL:
            return None
        raise ConfigError(f"{name} must not be None; leave it out for its default")
    flag = isinstance(value, (bool, np.bool_))
    if name in _BOOLS:
        if not flag:
            raise ConfigError(f"{name} must be True or False; got {value!r}")
        return bool(value)
    if name in _INTS:
        if flag or not isinstance(value, (int, np.integer)):
            raise ConfigError(f"{name} must be a whole number; got {value!r}")
        return int(value)
    if name in _FLOATS:
        if flag or not isinstance(value, (int, float, np.integer, np.floating)):
            raise ConfigError(f"{name} must be a number; got {value!r}")
        return float(value)
    return value


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
