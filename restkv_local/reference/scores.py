"""Stage score: what each past cell is worth; and `score`, all stages in torch, as literal as the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .attend import attend
from .inputs import FLT_MAX, Float32, Scores, prepare
from .methods import REFERENCES
from .methods.rows import Queryless
from .select import keep, share
from .smooth import kernel_and_shift, measure_drift, smooth


def score(q_win: Any, k: Any, v: Any, wo: Any = None, *, pos: Any = None, sinks: Any = None, **params: Any) -> Scores:
    """Scores of the past cells and the sets that survive, in torch; memory grows as heads x window x N.

    q_win: [heads, rows, d], the last queries after RoPE; the last `window` rows are used (tova: the last one; h2o: all
        that are given; methods that look at no query: none).
    k, v: [kv_heads, N, d]; query head h reads KV head h // (heads / kv_heads).
    wo: [c, heads * d] output projection; not needed without use_wo.
    pos: [kv_heads, N] ascending text positions of the cells; None: 0 .. N-1.
    sinks: [heads] logits of attention sinks, for models that have them.
    params: see `ScoreParams`.

    Returns (raw, smoothed, indices, kernel_sizes, shifts): raw and smoothed [heads, N - window] float32; indices of the
    surviving past cells, int32 ascending, [heads, C], or [kv_heads, C] with reduce; kernel_sizes and shifts [heads]
    int32. C is budget - window, or N - window when N < budget, unless an allocation says otherwise; -1 pads sets of
    different sizes. Method "tova" keeps one set per layer: all rows of smoothed and of indices are the same. Nothing is
    ever NaN or infinite.

    Raises ConfigError when a parameter or a shape does not fit. Source: ReST-KV (ICLR 2026), its published code.
    """
    inputs = prepare(q_win, k, v, wo, pos, sinks, params)
    p = inputs.params
    kernels = np.full(inputs.n_heads, p.kernel, dtype=np.int32)
    shifts = np.zeros(inputs.n_heads, dtype=np.int32)
    method = REFERENCES[p.method]
    if isinstance(method, Queryless):
        raw = smoothed = np.repeat(method.literal(inputs), inputs.group, axis=0)
    else:
        attention = attend(inputs)
        raw = smoothed = finite(method.literal(attention, inputs))
        if p.adaptive:
            kernels, shifts = kernel_and_shift(measure_drift(attention, inputs), inputs)
        if p.pools:
            smoothed = smooth(raw, kernels, shifts, inputs)
    if p.traits.per_layer:
        smoothed = share(smoothed)
    return raw, smoothed, keep(smoothed, inputs), kernels, shifts


def finite(raw: Tensor) -> Float32:
    """float32 without NaN or infinity: what is not finite counts as the largest float."""
    raw = torch.nan_to_num(raw, nan=FLT_MAX, posinf=FLT_MAX).clamp(max=FLT_MAX)
    result: Float32 = raw.float().numpy()
    return result
