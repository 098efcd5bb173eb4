"""What a model, a context and a budget take in memory, and what is impossible: said before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import (
    ADA_MOST,
    CELL_PAD,
    CELLS_MAX,
    DEFAULT_BATCH,
    DEFAULT_CONTEXT,
    DEFAULT_RESERVE,
    GUIDE_MAX,
    KV_TYPES,
    EvictConfig,
    in_range,
    one_of,
    parse_size,
)
from ..errors import ConfigError, ModelError
from ..paths import shown
from . import machine
from .allocation import Shares, share_out
from .archive import ArchivePlan, check_archive, plan_archive
from .ladder import plan_ladder

# Families whose attention, as it is scored, was checked against the reference (tests/native/test_parity.py).
VERIFIED = (
    "llama",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt-oss",
)

# ggml type numbers of the cache types that rows can be moved in.
GGML_TYPES = dict(zip(KV_TYPES, (1, 30, 8, 2), strict=True))

KvType = str | tuple[str, str]


@dataclass(frozen=True)
class Probe:
    """What restkv_model_probe tells of a model file: see restkv_model_info in native/restkv.h.

    bytes_archived, archive_refusal: bytes_per_cell and refusal of rows in the types of an archive that are not those of
    the cache; 0 and "" without one. bytes_weights: of all tensors.
    """

    arch: str
    refusal: str
    n_layer: int
    n_layer_swa: int
    n_layer_recurrent: int
    n_head: int
    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int
    n_ctx_train: int
    bytes_per_cell: int
    bytes_window: int
    bytes_archived: int = 0
    archive_refusal: str = ""
    bytes_weights: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes of an engine. Cells are per layer and KV head; bytes are of all evicting layers together.

    context: positions, a multiple of 256. budget + reserve = `limit`: more cells are never in use after a prompt.
    capacity: physical cells; above `limit` only with prefill="exact" (the context) and method "full". With allocation
    "pyramid" it is the mean over the layers, with "ada" a head may have up to shares.rows - budget cells more.
    shares: the budgets of the layers, and their total.
    guide: most tokens of a question that guided prefill runs. wo_bytes: an estimate; the report has the true figure.
    sums_bytes: votes of the queries for each cell, of a method that counts them. archive: outside the cells, or None.
    weights_bytes: of the model's tensors. gpu_layers: that go to GPUs, the output counted as one; -1: as many as
    llama.cpp puts there.
    """

    model: Path
    arch: str
    method: str
    prefill: str
    context: int
    budget: int
    reserve: int
    capacity: int
    window: int
    guide: int
    n_batch: int
    kv_types: tuple[str, str]
    n_layer: int
    n_ctx_train: int
    bytes_per_cell: int
    kv_bytes: int
    ring_bytes: int
    wo_bytes: int
    sums_bytes: int
    allocation: str
    shares: Shares
    archive: ArchivePlan | None = None
    weights_bytes: int = 0
    gpu_layers: int = 0

    def to_json(self) -> dict[str, Any]:
        """Every field as plain values, and `limit`, `cache_bytes`, `evicts`, `recalls` and `summary`."""
        found = asdict(self) | {"model": shown(self.model), "kv_types": list(self.kv_types)}
        found["shares"]["layers"] = list(self.shares.layers)
        if (archive := found["archive"]) is not None:
            archive["path"] = None if archive["path"] is None else shown(archive["path"])
            archive["types"] = list(archive["types"])
        return found | {
            name: getattr(self, name) for name in ("limit", "cache_bytes", "evicts", "recalls", "summary")
        }

    @property
    def limit(self) -> int:
        """Cells in use at which an eviction happens."""
        return self.budget + self.reserve

    @property
    def spare_rows(self) -> int:
        """Rows of a layer above the capacity, for heads that get more than the budget (allocation "ada")."""
        return self.shares.rows - self.budget if self.allocation == "ada" else 0

    @property
    def cache_bytes(self) -> int:
        """Of K and V and of what lies beside them at load."""
        return self.kv_bytes + self.ring_bytes + self.wo_bytes + self.sums_bytes

    @property
    def evicts(self) -> bool:
        """Whether a text inside the context can be too long for the cells."""
        if self.method == "full":
            return False
        # An exact prefill ends at the budget; the other modes use every cell first.
        first = self.shares.first
        return first < self.context - 1 if self.prefill == "exact" else first + self.reserve < self.context

    @property
    def recalls(self) -> bool:
        """Whether a prompt is read with recall: each chunk chooses its cells again."""
        return self.prefill == "recall" and self.evicts

    @property
    def beyond_training(self) -> str:
        """What to say when positions pass what the model was trained for."""
        return (
            f"positions beyond {self.n_ctx_train} are more than {self.model.name} was trained for, and its answers may "
            f"lose sense there; if the model card asks for YaRN (Qwen2.5 does for 128K), pass rope_scaling_type=2 and "
            f"yarn_orig_ctx={self.n_ctx_train}, else keep n_ctx at {self.n_ctx_train} or choose a model trained longer"
        )

    @property
    def _shared(self) -> str:
        if self.allocation == "uniform":
            return ""
        if self.allocation == "pyramid":
            spread = f"layers from {self.shares.layers[0]} to {self.shares.layers[-1]}"
        else:
            spread = f"heads up to {self.shares.rows}, with rows for that"
        return f" ({self.allocation}: {spread}, {self.shares.total} in total)"

    @property
    def summary(self) -> str:
        """One line for people."""
        cache = (
            f"{self.model.name}: {self.method}, budget {self.budget} + reserve {self.reserve} cells{self._shared}, "
            f"{machine.size(self.kv_bytes)} of KV cache for {self.context} positions"
        )
        archive = self.archive
        return cache if archive is None else f"{cache}, archive in {archive.place} {machine.size(archive.bytes)}"


def kv_pair(kv_type: KvType) -> tuple[str, str]:
    """Cache types of K and V. Raises ConfigError for unknown ones."""
    pair = (kv_type, kv_type) if isinstance(kv_type, str) else tuple(kv_type)
    if len(pair) != 2:
        raise ConfigError(f"kv_type must be one type or a pair (K, V); got {kv_type!r}")
    for name in pair:
        one_of("kv_type", name, KV_TYPES)
    return pair[0], pair[1]


def plan_memory(
    path: Path,
    probe: Probe,
    n_ctx: int = DEFAULT_CONTEXT,
    evict: EvictConfig | None = None,
    *,
    kv_type: KvType = "f16",
    n_batch: int = DEFAULT_BATCH,
    on_device: bool = False,
    free_bytes: int | None = None,
    free_disk: Callable[[Path], int] | None = None,
) -> MemoryPlan:
    """Resolve budget, reserve and capacity for a probed model.

    n_ctx: positions; 0 is what the model was trained for. on_device: the cache lies in the memory of an accelerator,
    which llama.cpp checks itself. free_bytes: memory of this machine, free_disk: of a folder (None asks the machine).
    Raises ModelError for a model that cannot be evicted and ConfigError for settings that cannot work, with the
    smallest or largest that do.
    """
    evict = evict or EvictConfig()
    in_range("n_ctx", n_ctx, 0, CELLS_MAX)
    in_range("n_batch", n_batch, 1, CELLS_MAX)
    types = kv_pair(kv_type)
    context = _round_up(n_ctx or probe.n_ctx_train)
    _check_model(path, probe, evict)
    prefill = evict.prefill_used

    if evict.method == "full":
        budget, reserve, capacity = context, 0, context
    else:
        budget, reserve = _cells(evict, probe.bytes_per_cell, n_batch)
        if budget + reserve > context:
            budget = min(budget, context - 1)
            reserve = context - budget
        capacity = context if prefill == "exact" else budget + reserve
    shares = share_out(evict, budget, probe.n_layer, probe.n_head_kv)
    if prefill == "exact":
        capacity += budget - shares.first  # the layer with the fewest rows has them for the whole context
    guide = 0
    if evict.method != "full" and capacity < context:
        if prefill == "guided":
            guide = min(GUIDE_MAX, reserve // 2)
            if probe.n_layer_swa:
                # In pieces it would push cells out of the sliding window that are needed again after it.
                guide = min(guide, n_batch)
            least = min(evict.window, GUIDE_MAX)
            if guide < least:
                raise ConfigError(
                    f"guided prefill runs the question in half of the reserve, which has {reserve} cells; "
                    f"set reserve to at least {2 * least} and n_batch to at least {least}"
                )
        n_batch = min(n_batch, reserve - guide)

    window = evict.window_cells(budget)
    rows = evict.ring_rows(budget, capacity)
    ring = probe.bytes_window * (rows + 1) if rows else 0
    wo = probe.n_layer * probe.n_head * probe.n_embd_head_v**2 * 4 if evict.reads_wo else 0
    sums = probe.n_layer * probe.n_head_kv * capacity * 4 if evict.traits.votes else 0
    if evict.traits.ladder:
        plan_ladder(probe.n_layer, budget, evict.window, evict.sinks, evict.span, evict.overlap)
    plan = MemoryPlan(
        model=path,
        arch=probe.arch,
        method=evict.method,
        prefill=prefill,
        context=context,
        budget=budget,
        reserve=reserve,
        capacity=capacity,
        window=window,
        guide=guide,
        n_batch=min(n_batch, context),
        kv_types=types,
        n_layer=probe.n_layer,
        n_ctx_train=probe.n_ctx_train,
        bytes_per_cell=probe.bytes_per_cell,
        kv_bytes=(capacity + (shares.rows - budget if evict.allocation == "ada" else 0)) * probe.bytes_per_cell,
        ring_bytes=ring,
        wo_bytes=wo,
        sums_bytes=sums,
        allocation=evict.allocation,
        shares=shares,
        archive=plan_archive(
            evict,
            types,
            context=context,
            bytes_per_row=probe.bytes_archived or probe.bytes_per_cell,
            # a sliding window takes one batch back, not more; recurrent layers nothing
            guide=0 if probe.n_layer_recurrent else min(reserve, n_batch) if probe.n_layer_swa else reserve,
        ),
        weights_bytes=probe.bytes_weights,
    )
    free_bytes = machine.free_memory() if free_bytes is None else free_bytes
    if not on_device:
        _check_fits(plan, free_bytes)
    if plan.archive is not None:
        check_archive(plan.archive, 0 if on_device else plan.cache_bytes, free_bytes, free_disk)
    return plan


def default_reserve(budget: int, n_batch: int = DEFAULT_BATCH) -> int:
    """Free cells above a budget: as many again up to DEFAULT_RESERVE, room for a batch and a guide, an eighth of a
    large budget. An eviction costs about the window's attention over all cells, so its share of the work depends on
    window / reserve, and not on the budget.
    """
    return max(min(budget, DEFAULT_RESERVE), n_batch + GUIDE_MAX, budget // 8)


def _cells(evict: EvictConfig, bytes_per_cell: int, n_batch: int) -> tuple[int, int]:
    """Budget and reserve in cells."""
    if isinstance(evict.budget, int):
        if evict.reserve is not None:
            return evict.budget, evict.reserve
        reserve = default_reserve(evict.budget, n_batch)
        return evict.budget, _round_up(evict.budget + reserve) - evict.budget

    most = ADA_MOST if evict.allocation == "ada" else 1
    smallest = evict.budget_min * most + (1 if evict.reserve is None else evict.reserve)
    if evict.reserve is None:
        smallest = _round_up(smallest)
    cells = parse_size(evict.budget) // max(1, bytes_per_cell)
    if cells < smallest:
        raise ConfigError(
            f"a KV cache of {evict.budget.strip()} holds {cells} cells of this model; "
            f"the smallest budget that works with these settings is {smallest * bytes_per_cell}B"
        )
    cells = min(cells, CELLS_MAX)
    if evict.allocation == "ada":
        return _ada_cells(evict, cells, n_batch)
    if evict.reserve is not None:
        return cells - evict.reserve, evict.reserve
    cells -= cells % CELL_PAD
    # The same share as for a budget in cells: half of a small cache, a ninth of a large one.
    reserve = max(min(cells // 2, DEFAULT_RESERVE), n_batch + GUIDE_MAX, cells // 9)
    reserve = min(reserve, max(cells // 2, 1), cells - evict.budget_min)
    return cells - reserve, reserve


def _ada_cells(evict: EvictConfig, cells: int, n_batch: int) -> tuple[int, int]:
    """Budget and reserve of rows that hold ADA_MOST budgets."""
    reserve = evict.reserve
    if reserve is None:
        reserve = max(min(cells // (ADA_MOST + 1), DEFAULT_RESERVE), n_batch + GUIDE_MAX, cells // (8 * ADA_MOST + 1))
        reserve = min(reserve, max(cells // 2, 1), cells - ADA_MOST * evict.budget_min)
    return (cells - reserve) // ADA_MOST, reserve


def _check_model(path: Path, probe: Probe, evict: EvictConfig) -> None:
    if evict.method == "full":
        return
    if probe.refusal:
        raise ModelError(
            f"{path.name} ({probe.arch}) cannot be evicted: {probe.refusal}; method='full' keeps every cell"
        )
    if probe.archive_refusal:
        raise ConfigError(
            f"archive_type '{evict.archive_type}' does not fit {path.name}: {probe.archive_refusal}; "
            f"use archive_type 'auto'"
        )
    if probe.n_layer_recurrent and evict.prefill == "guided":
        raise ConfigError(f"{path.name} has recurrent layers, which cannot forget a guide; use prefill='stream'")
    if probe.arch not in VERIFIED and not evict.unverified:
        raise ModelError(
            f"evictions were not verified for models of the family '{probe.arch}' ({path.name}); "
            f"set unverified=True in EvictConfig to evict anyway, or method='full' to keep every cell"
        )


def _check_fits(plan: MemoryPlan, free_bytes: int | None) -> None:
    if free_bytes is None or plan.cache_bytes <= free_bytes:
        return
    rest = plan.cache_bytes - plan.kv_bytes
    cells = max(0, free_bytes - rest) // max(1, plan.bytes_per_cell) // CELL_PAD * CELL_PAD
    need = f"needs {machine.size(plan.kv_bytes)} of memory and {machine.size(free_bytes)} are free"
    if plan.method == "full" or plan.prefill == "exact":
        kind = "a full cache" if plan.method == "full" else "exact prefill"
        way_out = f"method='{EvictConfig.method}'" if plan.method == "full" else "prefill='stream' or 'guided'"
        raise ConfigError(
            f"{kind} of {plan.context} positions {need}; the largest n_ctx that fits is {cells}, "
            f"or keep the context with {way_out}"
        )
    raise ConfigError(f"a KV cache of {plan.capacity} cells {need}; budget and reserve together may be {cells} cells")


def _round_up(cells: int) -> int:
    return -(-cells // CELL_PAD) * CELL_PAD
