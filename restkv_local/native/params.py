"""What a config is in the terms of restkv.h."""

from __future__ import annotations

import ctypes as C
from typing import TYPE_CHECKING

from ..config import EvictConfig
from .library import check, lib
from .structs import ALLOCATION, INDICATOR, METRIC_MODE, POOLING, REDUCE, ROWS, STAGES, Params, ShareParams

if TYPE_CHECKING:
    from ..plan.allocation import Shares


def params_from(config: EvictConfig, *, budget: int, capacity: int, n_threads: int) -> Params:
    """restkv_params of a config whose budget is resolved to cells.

    budget, capacity: cells per KV head and layer. n_threads: 0 uses all cores.
    """
    return Params(
        method=config.method.encode(),
        budget=budget,
        capacity=capacity,
        window=config.window_cells(budget),
        kernel=config.kernel_used,
        scale=config.scale,
        pooling=POOLING[config.pooling_used],
        metric_mode=METRIC_MODE[config.metric_mode],
        reduce=REDUCE[config.reduce],
        alpha=-1.0 if config.alpha is None else config.alpha,
        tau=config.tau,
        use_wo=config.use_wo and config.indicator == "reconstruction",
        use_norm=config.use_norm,
        use_ema=config.use_ema,
        stages=STAGES[config.stages],
        n_threads=n_threads,
        seed=config.seed,
        indicator=INDICATOR[config.indicator],
        rows=ROWS[config.rows_used],
        n_ring=config.ring_rows(budget, capacity),
        sinks=config.sinks,
        span=config.span or 0,
        overlap=config.overlap,
    )


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
