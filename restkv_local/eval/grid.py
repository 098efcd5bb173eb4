"""What an evaluation runs: every combination of context, seed, method, budget and prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import DEFAULT_BATCH, EvictConfig
from ..paths import shown
from ..plan.gpus import gpu_options
from .variant import FULL, Variant

Engine = Any
# Fields of EvictConfig that change nothing before the first eviction. A setting that is not among them may.
_LATER = frozenset(
    "budget reserve method alpha kernel scale tau pooling metric_mode use_wo use_norm use_ema indicator rows reduce "
    "sinks span overlap seed unverified window".split()
)


@dataclass(frozen=True)
class StateKind:
    """What must agree for a state of one engine to be read as if another had read the same beginning itself.

    same: all that must be equal. ring: bytes of remembered queries; the newest of a larger ring are those of a smaller
    one. across: whether settings share it, so that it is worth keeping for the next one.
    """

    same: tuple[Any, ...]
    ring: int = 0
    across: bool = False

    def serves(self, other: StateKind) -> bool:
        """Whether a state of this kind can be read by an engine of the other."""
        return self.same == other.same and self.ring >= other.ring


@dataclass(frozen=True)
class Grid:
    """What is run. samples: per cell of a task's grid; None: the task's own number."""

    model: str | None
    variants: tuple[Variant, ...]
    budgets: tuple[int | str, ...]
    prefills: tuple[str, ...]
    contexts: tuple[int, ...]
    seeds: tuple[int, ...]
    reserve: int | None
    kv_type: str | tuple[str, str]
    threads: int | None
    gpu_layers: int
    unverified: bool
    samples: int | None = None
    main_gpu: int | None = None
    tensor_split: tuple[float, ...] | None = None

    def settings(self, seed: int) -> list[Setting]:
        """The full cache, then every variant, budget and prefill. Raises ConfigError for what cannot be."""
        found = [Setting(FULL, self._evict(seed, method=FULL), self.kv_type)]
        for variant in self.variants:
            for budget in self.budgets:
                for prefill in self.prefills:
                    evict = self._evict(
                        seed, method=variant.method, budget=budget, prefill=prefill, reserve=self.reserve,
                        **variant.changes,
                    )  # fmt: skip
                    found.append(Setting(variant.name, evict, self.kv_type))
        return found

    def _evict(self, seed: int, **changes: Any) -> EvictConfig:
        return EvictConfig().with_(seed=seed, unverified=self.unverified, **changes)

    def load(
        self, make: Callable[..., Engine], setting: Setting, n_ctx: int, n_batch: int = DEFAULT_BATCH
    ) -> Engine:
        """An engine with a setting."""
        return make(
            self.model,
            n_ctx,
            setting.evict,
            kv_type=self.kv_type,
            n_threads=self.threads,
            n_gpu_layers=self.gpu_layers,
            n_batch=n_batch,
            **self.split(),
        )

    def split(self) -> dict[str, Any]:
        """How an engine shares its layers out among several GPUs. Raises ConfigError for settings that exclude each
        other."""
        return gpu_options(self.main_gpu, self.tensor_split)

    def devices(self) -> dict[str, Any]:
        """The settings of the GPUs, for a line of results."""
        return {"gpu_layers": self.gpu_layers, "main_gpu": self.main_gpu, "tensor_split": self.tensor_split}


@dataclass(frozen=True)
class Setting:
    """One way to keep a cache. name: of its variant."""

    name: str
    evict: EvictConfig
    kv_type: str | tuple[str, str]

    @property
    def full(self) -> bool:
        """Whether it is the yardstick."""
        return self.evict.method == FULL

    @property
    def title(self) -> str:
        """For people."""
        return "full cache" if self.full else f"{self.name}, budget {self.evict.budget}, {self.evict.prefill_used}"

    def record(self) -> dict[str, Any]:
        """Everything that makes it another setting, for a line of results."""
        kv = self.kv_type if isinstance(self.kv_type, str) else ",".join(self.kv_type)
        return {
            "name": self.name,
            "method": self.evict.method,
            "budget": None if self.full else self.evict.budget,
            "prefill": None if self.full else self.evict.prefill_used,
            "kv_type": kv,
            "evict": asdict(self.evict),
        }


def state_kind(engine: Engine, setting: Setting, guide: str) -> StateKind:
    """The kind of the states that an engine saves."""
    report, evict = engine.report(), setting.evict
    if setting.full:
        return StateKind((FULL, report.capacity, engine.n_batch))
    if evict.prefill == "exact":
        # where the cells of a text begin depends on how the budget is shared out
        uniform = evict.allocation == "uniform"
        early = _LATER if uniform else _LATER - {"budget"}
        rest = tuple((name, value) for name, value in asdict(evict).items() if name not in early)
        if not evict.traits.votes:
            # an eviction looks at cells and at the window's queries only
            return StateKind(("before", rest, report.capacity, engine.n_batch), report.ring_bytes, across=uniform)
        # States hold the votes too, which are counted ring by ring.
        votes = ("votes", evict.method, rest, report.capacity, report.ring_bytes, engine.n_batch)
        return StateKind(votes, across=uniform)
    guided = guide if evict.prefill == "guided" else None
    return StateKind(("own", tuple(asdict(evict).items()), guided, engine.n_batch))


def model_record(engine: Engine) -> dict[str, Any]:
    """The model of a line of results. group: query heads that share the cells of a KV head."""
    plan, metadata = engine.plan, engine.metadata
    n_head = int(metadata.get(f"{plan.arch}.attention.head_count", 0) or 0)
    n_head_kv = int(metadata.get(f"{plan.arch}.attention.head_count_kv", n_head) or n_head)
    return {
        "name": shown(Path(plan.model).name),
        "bytes": Path(plan.model).stat().st_size,
        "arch": plan.arch,
        "n_ctx_train": plan.n_ctx_train,
        "group": n_head // n_head_kv if n_head_kv and n_head else None,
    }


def cache_record(engine: Engine, positions: int) -> dict[str, Any]:
    """The cache of a line of results. bytes: of the cells that the setting may hold when an answer begins; of the full
    cache, of the positions that it holds then."""
    plan, report = engine.plan, engine.report()
    cells = positions if plan.method == FULL else plan.limit + plan.spare_rows
    return {
        "budget": report.budget,
        "reserve": report.reserve,
        "capacity": report.capacity,
        "window": report.window,
        "bytes": cells * plan.bytes_per_cell,
        "cells": report.cells,
        "n_batch": engine.n_batch,
    }


def pairs(contexts: tuple[int, ...], seeds: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Every context with every seed, in the order in which they run."""
    for context in contexts:
        for seed in seeds:
            yield context, seed
