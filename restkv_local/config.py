"""How a cache evicts: every default and every bound has its one home here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, Literal, cast, get_args

from .errors import ConfigError
from .plan.methods import TRAITS, Method, Traits

Prefill = Literal["stream", "exact", "guided", "recall"]
Pooling = Literal["none", "avgpool", "maxpool", "adaptive"]
MetricMode = Literal["after", "before"]
Reduce = Literal["mean", "max"]
Indicator = Literal["reconstruction", "attention", "attention-value-norm"]
Rows = Literal["ema", "mean", "inverted-ema", "last", "max"]
Stages = Literal["auto", "fused", "graph", "host"]
Allocation = Literal["uniform", "pyramid", "ada"]
Place = Literal["none", "ram", "file"]
ArchiveType = Literal["auto", "q8_0", "q4_0"]

METHODS: tuple[str, ...] = get_args(Method)
PREFILLS: tuple[str, ...] = get_args(Prefill)
POOLINGS: tuple[str, ...] = get_args(Pooling)
METRIC_MODES: tuple[str, ...] = get_args(MetricMode)
REDUCES: tuple[str, ...] = get_args(Reduce)
INDICATORS: tuple[str, ...] = get_args(Indicator)
ROWS: tuple[str, ...] = get_args(Rows)
STAGES: tuple[str, ...] = get_args(Stages)
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)
PLACES: tuple[str, ...] = get_args(Place)
ARCHIVE_TYPES: tuple[str, ...] = get_args(ArchiveType)
KV_TYPES: tuple[str, ...] = ("f16", "bf16", "q8_0", "q4_0")

DEFAULT_CONTEXT = 131072
DEFAULT_BUDGET = 1024
# Also the size of a chunk that is read with recall, where the reserve has as many cells, whatever is far away: reading
# 32,768 tokens took 13.5 s of a processor in chunks of 256, 11.4 in those of 512, 10.3 in those of 1,024, and 10.5 by
# stream (two layers in the shape of SmolLM2-135M, budget 1,024, one thread; two runs of 512 differed by 1.4).
DEFAULT_BATCH = 512
# Free cells above the budget, unless it is small or large (plan.default_reserve).
DEFAULT_RESERVE = 1024
# The same in an evaluation: small, so that what is measured is the budget and not the reserve above it.
EVAL_RESERVE = 256
EVAL_CONTEXTS = (2048, 4096)
EVAL_BUDGETS = (256, 1024)
# Saved beginnings of texts that an evaluation holds in memory, unless less is free.
EVAL_STATE_BYTES = 1 << 30

WINDOW_MAX = 1024
KERNEL_MAX = 1023
BETA_MIN = 1
# With allocation "ada" a KV head gets at most this many times the budget: rows are allocated for it.
ADA_MOST = 2
CELLS_MAX = 1 << 24
# Most queries that a method whose queries vote remembers until they have; a ubatch must not be larger.
VOTERS_MAX = 512
# Most bytes of a session's header, which holds the messages: beyond every context that can be read.
SESSION_HEADER_MAX = 1 << 25
# A guide longer than this is cut to its last tokens: only the last `window` queries score.
GUIDE_MAX = 128
# Characters of a question that a report tells: the end of a message that holds a document too.
QUESTION_SHOWN = 400
# A recall: queries that speak, those whose direction is farthest from the others'. 64 are no better.
RECALL_ROWS = 16
# Positions around one that its score is the mean of: single ones lose a fact whose words lie side by side.
RECALL_KERNEL = 21
# First positions of a text that every recall chooses.
RECALL_SINKS = 4
# Passages that an answer is traced back to, at most; one that was looked at less than this part of the first is none.
SOURCES = 5
SOURCE_SHARE = 0.5
# Where the first weighs less than this, the answer was hardly copied from any of them.
SOURCE_WEAK = 0.2
# Positions around one that its weight is the mean of: at 1 line breaks and full stops win, at 21 a short fact loses.
SOURCE_KERNEL = 9
# Characters of a passage where no sentence ends, on each side of what was looked at.
SOURCE_CHARS = 160
# Most threads: GGML_MAX_N_THREADS of ggml.h. The system may give fewer, and ggml ends the process then.
THREADS_MAX = 512
# Seeds of sampling have 32 bits.
SEED_MAX = 2**32 - 1
# Bounds of settings that go on to llama_cpp.Llama: its C structures take 32 bits of any number without a word.
LLAMA_BOUNDS: dict[str, tuple[int, int]] = {
    "n_threads": (1, THREADS_MAX),
    "n_threads_batch": (1, THREADS_MAX),
    "n_gpu_layers": (-1, 2**31 - 1),
    "n_ubatch": (0, CELLS_MAX),
    "last_n_tokens_size": (0, CELLS_MAX),
}
# Capacities are rounded up to this many cells: the attention kernels read that many at a time.
CELL_PAD = 256

# When a device is right (restkv_local.check): largest relative error of a score, smallest share of equal sets.
CHECK_ERROR_MAX = 1e-3
CHECK_SETS_MIN = 0.995
# Most that the peak memory of a process may grow with the length of a text.
MEMORY_GROWTH_MAX = 0.02
# Of a device's free memory, what --gpu-layers -1 leaves for work buffers, graphs and other programs. llama.cpp's own
# fitting leaves as much (fit_params_target in common/common.h).
DEVICE_MARGIN = 1 << 30

_SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True)
class EvictConfig:
    """Settings of an evicting cache.

    budget: cells per KV head and layer that survive an eviction, window included; or the bytes of the whole KV cache
        (budget + reserve) as text: "512MB", "1GiB".
    reserve: free cells above the budget, where tokens go before the next eviction; None chooses.
    method: how cells are scored (docs/methods.md). "full" never evicts.
    prefill: how a prompt longer than the capacity is read (docs/prefill.md). None: "recall" with an archive, else
        "stream".
    window: the last positions; their queries score, their cells are always kept. Even.
    alpha: weight of the newest row of the window (EMA); None: 2 / (window + 1).
    kernel: width of the pooling, odd; the smallest width of the adaptive one. None: the method's own.
    scale: positions of drift per step of the adaptive kernel.
    tau: exponent of the output distance (metric_mode "after" with use_wo).
    pooling: how scores are smoothed along the text, of methods that do so. None: the method's own.
    metric_mode, use_wo, use_norm, use_ema: options of ReST-KV (docs/methods.md).
    indicator: what ReST-KV's score is made of; the last two are of its paper's ablation.
    rows: how ReST-KV averages the rows of the window; None: as use_ema says. "max": no average but the largest, at
        least the mean of these over the cells, as DefensiveKV does; with the indicators that are attention.
    reduce: how the query heads of a group share one set: mean or max of their smoothed scores.
    allocation: how the budget is shared out (docs/methods.md): the same everywhere, as a pyramid over the layers, or
        over the KV heads of a layer as their scores ask. The total stays that of the budget.
    beta: the last layer of a pyramid gets the (budget - window) / beta past cells.
    floor: the part of its plain share that every head keeps, with allocation "ada".
    sinks: first positions that the methods "streamingllm" and "lacache" keep.
    span: layers in which method "lacache" keeps a cell per pass; None: half of them.
    overlap: layers that neighbouring rungs of method "lacache" share.
    seed: of method "random".
    stages: where evictions run, and recalls attend (docs/architecture.md); "auto" goes where the cache lives.
    archive: where the rows that are evicted are kept, so that cells can be recalled: nowhere, in memory ("ram"), or in
        a file, in the temporary folder ("file") or at a path; it goes when the engine is closed.
    archive_type: how it keeps them; "auto": as the cache does, bit for bit. "q4_0" needs a quantized cache.
    recall_every: every so many tokens of an answer one recalls for itself, by position, as a chunk of a text that is
        read with recall does; 1: each, 0: none. Needs an archive.
    recall_below: in between, or alone, a layer recalls when the mean over its heads of the cosine between a token's
        query and the last query that recalled there is below this; 0: never. Needs an archive.
    unverified: evict a model family whose attention was not checked against the reference.
    """

    budget: int | str = DEFAULT_BUDGET
    reserve: int | None = None
    method: Method = "restkv"
    prefill: Prefill | None = None
    window: int = 32
    alpha: float | None = 0.3
    kernel: int | None = None
    scale: int = 2000
    tau: float = 1.0
    pooling: Pooling | None = None
    metric_mode: MetricMode = "after"
    use_wo: bool = True
    use_norm: bool = False
    use_ema: bool = True
    indicator: Indicator = "reconstruction"
    rows: Rows | None = None
    reduce: Reduce = "mean"
    allocation: Allocation = "uniform"
    beta: int = 20
    floor: float = 0.2
    sinks: int = 4
    span: int | None = None
    overlap: int = 0
    seed: int = 0
    stages: Stages = "auto"
    archive: str | os.PathLike[str] = "none"
    archive_type: ArchiveType = "auto"
    recall_every: int = 0
    recall_below: float = 0.0
    unverified: bool = False

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        if self.prefill is not None:
            one_of("prefill", self.prefill, PREFILLS)
        if self.pooling is not None:
            one_of("pooling", self.pooling, POOLINGS)
        one_of("metric_mode", self.metric_mode, METRIC_MODES)
        one_of("reduce", self.reduce, REDUCES)
        one_of("stages", self.stages, STAGES)
        in_range("window", self.window, 2, WINDOW_MAX)
        if self.window % 2:
            raise ConfigError(f"window must be even (the drift compares its two halves); {self.window} is odd")
        one_of("indicator", self.indicator, INDICATORS)
        if self.rows is not None:
            one_of("rows", self.rows, ROWS)
            check_rows(self.rows, self.indicator)
        if self.kernel is not None:
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
        if self.traits.budgets == "layer" and self.allocation == "ada":
            raise ConfigError(f"method '{self.method}' keeps the same cells in every head: use allocation 'uniform'")
        if self.traits.budgets == "one" and self.allocation != "uniform":
            raise ConfigError(
                f"method '{self.method}' needs one budget for all heads and layers: use allocation 'uniform'"
            )
        in_range("sinks", self.sinks, 0, CELLS_MAX)
        if self.span is not None:
            in_range("span", self.span, 1, CELLS_MAX)
        in_range("overlap", self.overlap, 0, CELLS_MAX)
        if self.traits.votes and self.reduce != "mean":
            raise ConfigError(f"method '{self.method}' adds up one number per KV head: reduce must be 'mean'")
        in_range("seed", self.seed, 0, 2**64 - 1)
        if isinstance(self.budget, bool) or not isinstance(self.budget, (int, str)):
            raise ConfigError(f"budget must be a number of cells or a size such as '512MB'; got {self.budget!r}")
        if self.reserve is not None:
            in_range("reserve", self.reserve, 1, CELLS_MAX)
        self._check_archive()
        if isinstance(self.budget, int):
            in_range("budget", self.budget, self.budget_min, CELLS_MAX)
        else:
            parse_size(self.budget)

    def _check_archive(self) -> None:
        one_of("archive_type", self.archive_type, ARCHIVE_TYPES)
        whole_in_range("recall_every", self.recall_every, 0, CELLS_MAX)
        below = self.recall_below
        if isinstance(below, bool) or not isinstance(below, (int, float)) or not 0.0 <= below < 1.0:
            raise ConfigError(f"recall_below must be a number from 0.0 to below 1.0; got {below!r}")
        if archive_place(self.archive) == "none":
            if self.recalls_in_answers:
                name = "recall_every" if self.recall_every else "recall_below"
                raise ConfigError(f"{name} recalls from an archive: set archive to 'ram' or 'file' too")
            if self.prefill == "recall":
                raise ConfigError("prefill 'recall' reads with an archive: set archive to 'ram' or 'file' too")
            return
        if self.method == "full":
            raise ConfigError("method 'full' keeps every cell: there is nothing to archive; use archive 'none'")
        if self.traits.votes:
            raise ConfigError(
                f"method '{self.method}' counts votes, which a recalled cell would lack; use archive 'none'"
            )
        if self.traits.window == "rest":
            raise ConfigError(
                f"method '{self.method}' keeps its own cells whatever is asked, so nothing can be recalled; "
                f"use archive 'none'"
            )
        if self.allocation != "uniform":
            raise ConfigError("an archive needs one budget for all heads and layers: use allocation 'uniform'")
        if self.prefill == "exact":
            raise ConfigError("prefill 'exact' has cells for the whole context: use prefill 'recall' with an archive")

    @property
    def budget_min(self) -> int:
        """Smallest budget in cells that these settings allow."""
        least = max(self.window, self.sinks if self.traits.sinks else 0) + 2
        if archive_place(self.archive) == "none":
            return least
        return max(least, self.window + RECALL_SINKS + 1)

    @property
    def prefill_used(self) -> Prefill:
        """How a long prompt is read: as set, else with the archive when there is one."""
        return self.prefill or ("stream" if archive_place(self.archive) == "none" else "recall")

    @property
    def recalls_in_answers(self) -> bool:
        """Whether tokens of an answer recall, besides questions and texts."""
        return self.recall_every > 0 or self.recall_below > 0

    @property
    def traits(self) -> Traits:
        """What the method needs; nothing for "full"."""
        return TRAITS.get(self.method, Traits())

    @property
    def kernel_used(self) -> int:
        """Width of the pooling: the method's own when none is set."""
        return self.traits.kernel if self.kernel is None else self.kernel

    @property
    def pooling_used(self) -> str:
        """The smoothing along the text: the method's own when none is set."""
        return self.traits.pooling if self.pooling is None else self.pooling

    @property
    def rows_used(self) -> str:
        """The weighting of the window's rows: `rows`, or what use_ema says."""
        return self.rows or ("ema" if self.use_ema else "mean")

    @property
    def reads_wo(self) -> bool:
        """Whether the scores need the output projections."""
        return self.traits.wo and self.use_wo and self.indicator == "reconstruction"

    def window_cells(self, budget: int) -> int:
        """The last cells that are always kept, of a budget in cells: those that are set, or, as the method's row may
        say, the newest one, or all of the budget that is no sink."""
        if self.traits.window == "rest":
            return budget - self.sinks
        return 1 if self.traits.window == "newest" else self.window

    def ring_rows(self, budget: int, capacity: int) -> int:
        """Queries remembered per layer: those of the window, those that have not voted yet, or those of a question."""
        window = self.window_cells(budget)
        if archive_place(self.archive) != "none":
            return max(window, GUIDE_MAX)
        if self.traits.queries == "none":
            return 0
        return max(window, min(capacity - budget, VOTERS_MAX)) if self.traits.votes else window

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


def check_rows(rows: str, indicator: str) -> None:
    """Refuse a way to make one of the window's rows that an indicator cannot use."""
    if rows in ("max", "sum") and indicator == "reconstruction":
        raise ConfigError(
            f"rows '{rows}' is no average, which indicator 'reconstruction' needs: set indicator to "
            "'attention-value-norm' or 'attention' too"
        )


def archive_place(archive: object) -> Place:
    """Whether an archive lies nowhere, in memory, or in a file, which may have a path. Raises ConfigError.

    A word without a folder and without a dot is no path but a mistake.
    """
    if archive in PLACES:
        return cast(Place, archive)
    if isinstance(archive, (str, os.PathLike)):
        text = os.fsdecode(archive)
        if isinstance(archive, os.PathLike) or os.path.dirname(text) or "." in text:
            return "file"
    raise ConfigError(f"archive must be {', '.join(PLACES)} or the path of a file (as ./NAME); got {archive!r}")


def whole_in_range(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is not a whole number from low to high."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}; got {value!r}")


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
