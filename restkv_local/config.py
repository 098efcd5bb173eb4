"""How a cache evicts: every default and every bound has its one home here."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from .errors import ConfigError

Method = Literal["restkv", "snapkv", "streamingllm", "random", "full"]
Prefill = Literal["stream", "exact", "guided"]
Pooling = Literal["none", "avgpool", "maxpool", "adaptive"]
MetricMode = Literal["after", "before"]
Reduce = Literal["mean", "max"]
Allocation = Literal["uniform", "pyramid", "ada"]

METHODS: tuple[str, ...] = ("restkv", "snapkv", "streamingllm", "random", "full")
PREFILLS: tuple[str, ...] = ("stream", "exact", "guided")
POOLINGS: tuple[str, ...] = ("none", "avgpool", "maxpool", "adaptive")
METRIC_MODES: tuple[str, ...] = ("after", "before")
REDUCES: tuple[str, ...] = ("mean", "max")
ALLOCATIONS: tuple[str, ...] = ("uniform", "pyramid", "ada")
KV_TYPES: tuple[str, ...] = ("f16", "bf16", "q8_0", "q4_0")

DEFAULT_CONTEXT = 131072
DEFAULT_BUDGET = 1024
DEFAULT_BATCH = 512
# Free cells above the budget, unless it is small or large (plan.default_reserve).
DEFAULT_RESERVE = 1024

WINDOW_MAX = 1024
KERNEL_MAX = 1023
BETA_MIN = 1
# With allocation "ada" a KV head gets at most this many times the budget: rows are allocated for it.
ADA_MOST = 2
CELLS_MAX = 1 << 24
# A guide longer than this is cut to its last tokens: only the last `window` queries score.
GUIDE_MAX = 128
# Capacities are rounded up to this many cells: the attention kernels read that many at a time.
CELL_PAD = 256

_SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True)
class EvictConfig:
    """Settings of an evicting cache.

    budget: cells per KV head and layer that survive an eviction, window included; or the bytes of the whole KV cache
        (budget + reserve) as text: "512MB", "1GiB".
    reserve: free cells above the budget, where tokens go before the next eviction; None chooses.
    method: how cells are scored (docs/methods.md). "full" never evicts.
    prefill: how a prompt longer than the capacity is read (docs/prefill.md).
    window: the last positions; their queries score, their cells are always kept. Even.
    alpha: weight of the newest row of the window (EMA); None: 2 / (window + 1).
    kernel: width of the pooling, odd; the smallest width of the adaptive one. 21, because retrieval of a single fact
        hangs on its neighbours being kept: 5 loses a pass key at 256 cells where 13 to 41 keep it.
    scale: positions of drift per step of the adaptive kernel.
    tau: exponent of the output distance (metric_mode "after" with use_wo).
    pooling, metric_mode, use_wo, use_norm, use_ema: options of ReST-KV (docs/methods.md).
    reduce: how the query heads of a group share one set: mean or max of their smoothed scores.
    allocation: how the budget is shared out (docs/methods.md): the same everywhere, as a pyramid over the layers, or
        over the KV heads of a layer as their scores ask. The total stays that of the budget.
    beta: the last layer of a pyramid gets the (budget - window) / beta past cells.
    floor: the part of its plain share that every head keeps, with allocation "ada".
    sinks: first positions that method "streamingllm" keeps.
    seed: of method "random".
    unverified: evict a model family whose attention was not checked against the reference.
    """

    budget: int | str = DEFAULT_BUDGET
    reserve: int | None = None
    method: Method = "restkv"
    prefill: Prefill = "stream"
    window: int = 32
    alpha: float | None = 0.3
    kernel: int = 21
    scale: int = 2000
    tau: float = 1.0
    pooling: Pooling = "adaptive"
    metric_mode: MetricMode = "after"
    use_wo: bool = True
    use_norm: bool = False
    use_ema: bool = True
    reduce: Reduce = "mean"
    allocation: Allocation = "uniform"
    beta: int = 20
    floor: float = 0.2
    sinks: int = 4
    seed: int = 0
    unverified: bool = False

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        one_of("prefill", self.prefill, PREFILLS)
        one_of("pooling", self.pooling, POOLINGS)
        one_of("metric_mode", self.metric_mode, METRIC_MODES)
        one_of("reduce", self.reduce, REDUCES)
        in_range("window", self.window, 2, WINDOW_MAX)
        if self.window % 2:
            raise ConfigError(f"window must be even (the drift compares its two halves); {self.window} is odd")
        in_range("kernel", self.kernel, 1, KERNEL_MAX)
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd; try {self.kernel + 1}")
        in_range("scale", self.scale, 1, CELLS_MAX)
        in_range("tau", self.tau, 0.0, 16.0)
        if self.alpha is not None and not 0.0 < self.alpha <= 1.0:
            raise ConfigError(f"alpha must be above 0 and at most 1, or None; got {self.alpha}")
        one_of("allocation", self.allocation, ALLOCATIONS)
        in_range("beta", self.beta, BETA_MIN, CELLS_MAX)
        in_range("floor", self.floor, 0.0, 1.0)
        if self.method == "full" and self.allocation != "uniform":
            raise ConfigError("method 'full' keeps every cell: it has no budget to share out; use allocation 'uniform'")
        if self.method == "streamingllm" and self.allocation == "ada":
            raise ConfigError("method 'streamingllm' keeps the same cells in every head: use allocation 'uniform'")
        in_range("sinks", self.sinks, 0, CELLS_MAX)
        in_range("seed", self.seed, 0, 2**64 - 1)
        if isinstance(self.budget, bool) or not isinstance(self.budget, (int, str)):
            raise ConfigError(f"budget must be a number of cells or a size such as '512MB'; got {self.budget!r}")
        if self.reserve is not None:
            in_range("reserve", self.reserve, 1, CELLS_MAX)
        if isinstance(self.budget, int):
            in_range("budget", self.budget, self.budget_min, CELLS_MAX)
        else:
            parse_size(self.budget)

    @property
    def budget_min(self) -> int:
        """Smallest budget in cells that these settings allow."""
        return max(self.window, self.sinks if self.method == "streamingllm" else 0) + 2

    def with_(self, **changes: Any) -> EvictConfig:
        """A copy with some settings changed; unknown names are refused."""
        known = {field.name for field in fields(self)}
        for name in changes:
            if name not in known:
                raise ConfigError(f"unknown setting '{name}'; known are {', '.join(sorted(known))}")
        return replace(self, **changes)


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not in a fixed list."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high]; booleans are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{name} must be a number from {low} to {high}; got {value!r}")


def parse_size(text: str) -> int:
    """Bytes of "512MB", "1.5GiB", "800000B". Decimal units are powers of 1000, binary ones (KiB) of 1024."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B\s*", text.upper())
    if match is None:
        raise ConfigError(f"'{text}' is not a size; write cells as a plain number or bytes as 512MB or 1GiB")
    return int(float(match[1]) * _SIZES[match[2] or ""])


def parse_budget(text: str) -> int | str:
    """A budget from the command line: cells ("1024") or bytes ("512MB")."""
    if re.fullmatch(r"\s*\d+\s*", text):
        return int(text)
    parse_size(text)
    return text.strip()
