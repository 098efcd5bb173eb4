"""Parameters of a score function and their checks."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

import numpy as np

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
    check_rows,
    in_range,
    one_of,
)
from ..errors import ConfigError
from ..plan.ladder import Ladder, plan_ladder
from ..plan.methods import TRAITS, Traits
from .methods import REFERENCES, translate
from .methods.rows import Attending

# The engine's allocations (docs/methods.md) and the published ones, which round in their own way.
SCORE_ALLOCATIONS = ("uniform", "pyramid", "pyramidkv", "ada", "adakv")

_DEFAULTS = EvictConfig()
# None, or not given: the method's own.
_OWN = ("kernel", "pooling")


@dataclass(frozen=True)
class ScoreParams:
    """Parameters of a score function; the defaults are those of `EvictConfig`.

    reduce: None gives one set per query head, "mean" or "max" one set per KV head.
    layer: index of the layer (methods "random" and "lacache").
    rows: as of `EvictConfig`; also "sum", not divided by the number of rows, for the indicators that are attention, as
        "max" is.
    official_mask: method "h2o": queries before the window see every cell, later ones too, as in the published ReST-KV
        code; False: no query looks ahead. The engine never lets one.
    start_size, span, overlap, num_layers, cursor: the ladder of method "lacache" (restkv_local.plan.ladder).
    attn_scale: factor of the attention logits; None or 0: 1 / sqrt(head size).
    softcap: logits become softcap * tanh(logits / softcap); 0: they stay.
    n_tail: last cells that are not scored, at least `window`; None: `window`. More than that when a guide follows the
        window: its queries are the last rows (fewer than `window` may be left then), its cells take part in the softmax
        and are no candidates.
    allocation: how the budget is shared out (restkv_local.plan.allocation). "pyramid": layer `layer_idx` of
        `num_layers` gets its share as ReST-KV publishes it, with the divisor `beta`; "pyramidkv": as PyramidKV does;
        the shares count past cells, the window comes on top. "ada": the heads of the layer share, `floor` of each share
        is fixed, `normalize` makes heads with scores spread thin yield, and none gets more than `most` past cells;
        "adakv": as published, where rounding may change the total. Sets are then of different sizes: -1 pads the
        shorter ones.
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
        # a window that is the rest of the budget is as large as that makes it
        in_range(
            "window", self.window, 1 if self.pools else 0, CELLS_MAX if self.traits.window == "rest" else WINDOW_MAX
        )
        in_range("budget", self.budget, self.window + 1, CELLS_MAX)
        in_range("kernel", self.kernel, 1 if self.pools else 0, KERNEL_MAX)
        if self.pools and self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd; try {self.kernel + 1}")
        one_of("indicator", self.indicator, INDICATORS)
        if self.rows is not None:
            one_of("rows", self.rows, (*ROWS, "sum"))
            check_rows(self.rows, self.indicator)
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
        if self.traits.ladder:
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
        row = REFERENCES[self.method]
        if self.mean_rows and not (isinstance(row, Attending) and row.mean_rows):
            known = [f"'{name}'" for name, row in REFERENCES.items() if isinstance(row, Attending) and row.mean_rows]
            raise ConfigError(f"mean_rows works with method {' and '.join(known)} only; leave it out")
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
        return self.traits.wo and self.use_wo and self.indicator == "reconstruction"

    @property
    def rows_used(self) -> str:
        """The weighting of the window's rows: `rows`, or what use_ema says."""
        return self.rows or ("ema" if self.use_ema else "mean")

    @property
    def ladder(self) -> Ladder:
        """The ladder, of a method that has one."""
        if self.num_layers is None:
            raise ConfigError(f"method '{self.method}' needs num_layers and layer; pass both")
        in_range("num_layers", self.num_layers, 1, 2**31 - 1)
        return plan_ladder(self.num_layers, self.budget, self.window, self.start_size, self.span, self.overlap)

    @property
    def tail(self) -> int:
        """Last cells that are not scored."""
        return self.window if self.n_tail is None else self.n_tail


def parse_params(params: dict[str, Any]) -> ScoreParams:
    """`ScoreParams` of plain or numpy numbers; unknown names are refused. kernel and pooling None, or not given: the
    method's own."""
    params = translate(params)
    known = [field.name for field in fields(ScoreParams)]
    clean: dict[str, Any] = {}
    for name, value in params.items():
        if name not in known:
            raise ConfigError(f"unknown parameter '{name}'; known are {', '.join(known)}")
        clean[name] = _number(name, value)
    own = TRAITS.get(str(clean.get("method", _DEFAULTS.method)), Traits())
    for name in _OWN:
        if clean.get(name) is None:
            clean[name] = getattr(own, name)
    return ScoreParams(**clean)


@functools.cache
def _types() -> dict[str, frozenset[type]]:
    """The types that each parameter may have, NoneType among them."""
    hints = get_type_hints(ScoreParams)
    return {field.name: frozenset(get_args(hints[field.name]) or (hints[field.name],)) for field in fields(ScoreParams)}


def _number(name: str, value: Any) -> Any:
    types = _types()[name]
    if value is None:
        if type(None) in types or name in _OWN:
            return None
        raise ConfigError(f"{name} must not be None; leave it out for its default")
    flag = isinstance(value, (bool, np.bool_))
    if bool in types:
        if not flag:
            raise ConfigError(f"{name} must be True or False; got {value!r}")
        return bool(value)
    if int in types:
        if flag or not isinstance(value, (int, np.integer)):
            raise ConfigError(f"{name} must be a whole number; got {value!r}")
        return int(value)
    if float in types:
        if flag or not isinstance(value, (int, float, np.integer, np.floating)):
            raise ConfigError(f"{name} must be a number; got {value!r}")
        return float(value)
    return value
