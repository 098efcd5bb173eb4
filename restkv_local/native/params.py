"""What a config is in the terms of restkv.h."""

from __future__ import annotations

import ctypes as C
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import GUIDE_MAX, RECALL_KERNEL, RECALL_ROWS, RECALL_SINKS, EvictConfig
from .library import check, lib
from .structs import (
    ALLOCATION,
    INDICATOR,
    METRIC_MODE,
    PLACE,
    POOLING,
    REDUCE,
    ROWS,
    STAGES,
    ArchiveParams,
    Params,
    ShareParams,
)

if TYPE_CHECKING:
    from ..plan.allocation import Shares
    from ..plan.archive import ArchivePlan
    from ..reference.params import ScoreParams


def params_from(config: EvictConfig, *, budget: int, capacity: int, n_threads: int) -> Params:
    """restkv_params of a config whose budget is resolved to cells.

    budget, capacity: cells per KV head and layer. n_threads: 0 uses all cores.
    """
    return Params(
        **scoring(config),
        budget=budget,
        capacity=capacity,
        window=config.window_cells(budget),
        kernel=config.kernel_used,
        pooling=POOLING[config.pooling_used],
        use_wo=config.use_wo and config.indicator == "reconstruction",
        stages=STAGES[config.stages],
        n_threads=n_threads,
        n_ring=config.ring_rows(budget, capacity),
        sinks=config.sinks,
    )


def scoring(settings: EvictConfig | ScoreParams) -> dict[str, Any]:
    """The settings of a score that an engine and a score function have in common, as fields of restkv_params."""
    return {
        "method": settings.method.encode(),
        "scale": settings.scale,
        "metric_mode": METRIC_MODE[settings.metric_mode],
        "reduce": REDUCE[settings.reduce],
        "alpha": -1.0 if settings.alpha is None else settings.alpha,
        "tau": settings.tau,
        "use_norm": settings.use_norm,
        "use_ema": settings.use_ema,
        "seed": settings.seed,
        "indicator": INDICATOR[settings.indicator],
        "rows": ROWS[settings.rows_used],
        "span": settings.span or 0,
        "overlap": settings.overlap,
    }


def arm_shares(config: EvictConfig, shares: Shares) -> None:
    """Tell the armed cache of this thread how its budget is shared out; call after restkv_arm."""
    if config.allocation == "uniform":
        return
    budgets = (C.c_uint32 * len(shares.layers))(*shares.layers)
    args = ShareParams(
        kind=ALLOCATION[config.allocation],
        n_layer=len(budgets),
        budgets=C.addressof(budgets),
        # where the window is what the sinks leave, it is so in every layer
        n_past=config.sinks if config.traits.window == "rest" else -1,
        head_max=shares.rows,
        floor=config.floor,
    )
    check(lib().restkv_arm_shares(C.byref(args)))


def arm_archive(archive: ArchivePlan | None, types: tuple[int, int] | None, path: Path | None) -> None:
    """Give the armed cache of this thread its archive; call after restkv_arm.

    types: ggml types of its rows of K and V; None: those of the cache. path: of its file.
    """
    if archive is None:
        return
    args = archive_params(archive, types)
    args.path = None if path is None else os.fsencode(path)
    check(lib().restkv_arm_archive(C.byref(args)))


def archive_params(archive: ArchivePlan, types: tuple[int, int] | None) -> ArchiveParams:
    """An archive as the native side takes it, without the path of its file; types as of arm_archive."""
    type_k, type_v = types or (-1, -1)
    return ArchiveParams(
        place=PLACE[archive.place],
        type_k=type_k,
        type_v=type_v,
        n_ctx=archive.rows,
        n_rows=RECALL_ROWS,
        kernel=RECALL_KERNEL,
        sinks=RECALL_SINKS,
        n_guide=GUIDE_MAX,
    )
