"""What the programs and the benchmarks say about an engine, and how it is handed on to another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import EvictConfig
from ..plan.gpus import gpu_options


@dataclass(frozen=True)
class EngineSettings:
    """What the options say about the engine. prefill None: the program chooses; seed None: a new one each time.

    Raises ConfigError where what is said of several GPUs cannot be.
    """

    model: str | None
    context: int
    budget: int | str
    reserve: int | None
    method: str
    prefill: str | None
    kv_type: str | tuple[str, str]
    threads: int | None
    gpu_layers: int
    seed: int | None
    unverified: bool
    allocation: str = EvictConfig.allocation
    main_gpu: int | None = None
    tensor_split: tuple[float, ...] | None = None
    archive: str = "none"
    archive_type: str = EvictConfig.archive_type
    recall_every: int = EvictConfig.recall_every
    recall_below: float = EvictConfig.recall_below

    def __post_init__(self) -> None:
        self.split()

    def evict(self, **changes: Any) -> EvictConfig:
        """The settings of the cache; raises ConfigError."""
        chosen: dict[str, Any] = {
            "budget": self.budget,
            "reserve": self.reserve,
            "method": self.method,
            "allocation": self.allocation,
            "unverified": self.unverified,
            "archive": self.archive,
            "archive_type": self.archive_type,
            "recall_every": self.recall_every,
            "recall_below": self.recall_below,
        }
        if self.prefill is not None:
            chosen["prefill"] = self.prefill
        if self.seed is not None:
            chosen["seed"] = self.seed
        return EvictConfig().with_(**(chosen | changes))

    def load(self, engine_class: Callable[..., Any], *, evict: EvictConfig, n_ctx: int, **callbacks: Any) -> Any:
        """An engine with these settings. Raises what the engine raises."""
        extra: dict[str, Any] = dict(callbacks)
        if self.seed is not None:
            extra["seed"] = self.seed
        return engine_class(
            self.model,
            n_ctx,
            evict,
            kv_type=self.kv_type,
            n_threads=self.threads,
            n_gpu_layers=self.gpu_layers,
            **self.split(),
            **extra,
        )

    def split(self) -> dict[str, Any]:
        """How an engine is told to share its layers out among several GPUs; nothing where that is left to llama.cpp."""
        return gpu_options(self.main_gpu, self.tensor_split)

    def arguments(self) -> list[str]:
        """The options that say the same to another program, all but the context and the prefill."""
        kv_type = self.kv_type if isinstance(self.kv_type, str) else ",".join(self.kv_type)
        words = ["--budget", str(self.budget), "--method", self.method]
        words += ["--kv-type", kv_type, "--gpu-layers", str(self.gpu_layers)]
        words += ["--archive", self.archive, "--archive-type", self.archive_type]
        words += ["--recall-every", str(self.recall_every), "--recall-below", str(self.recall_below)]
        for name in ("model", "allocation", "reserve", "threads", "seed"):
            if (value := getattr(self, name)) is not None:
                words += [f"--{name}", str(value)]
        if self.main_gpu is not None:
            words += ["--main-gpu", str(self.main_gpu)]
        if self.tensor_split is not None:
            words += ["--tensor-split", ",".join(map(str, self.tensor_split))]
        return [*words, "--unverified"] if self.unverified else words
