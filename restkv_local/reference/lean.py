"""`score_lean`: the same scores with memory in proportion to the number of cells, for texts of any length (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .compiled import compiled
from .inputs import FLT_MAX, Float32, ScoreInputs, Scores, prepare
from .methods import REFERENCES
from .methods.rows import Attending, Float64, Queryless
from .select import keep, share


def score_lean(
    q_win: Any, k: Any, v: Any, wo: Any = None, *, pos: Any = None, sinks: Any = None, **params: Any
) -> Scores:
    """As `restkv_local.reference.score`: same arguments, result and errors; scratch of a few floats per cell.

    One row of the window at a time: its logits, their log-sum-exp, the positions of its most attended cells, and its
    share of the weighted sums. W_o enters through the triangular factor R of each head's block: ||W x|| = ||R x||.
    """
    inputs = prepare(q_win, k, v, wo, pos, sinks, params)
    p = inputs.params
    kernels = np.full(inputs.n_heads, p.kernel, dtype=np.int32)
    shifts = np.zeros(inputs.n_heads, dtype=np.int32)
    method = REFERENCES[p.method]
    if isinstance(method, Queryless):
        per_kv_head = np.empty((inputs.n_kv_heads, inputs.n_past), dtype=np.float32)
        for head, out in enumerate(per_kv_head):
            method.lean(inputs, head, out)
        raw = smoothed = np.repeat(per_kv_head, inputs.group, axis=0)
        return raw, smoothed, keep(smoothed, inputs), kernels, shifts

    raw = np.empty((inputs.n_heads, inputs.n_past), dtype=np.float32)
    smoothed = np.empty_like(raw)
    positions = inputs.positions()
    for h in range(inputs.n_heads):
        kv = h // inputs.group
        at = np.ascontiguousarray(positions[kv])
        scores, drift = head_scores(inputs, method, h, at)
        raw[h] = np.minimum(np.nan_to_num(scores, nan=FLT_MAX, posinf=FLT_MAX), FLT_MAX)
        if p.adaptive and inputs.drift_acts(kv):
            steps = int(abs(drift) // p.scale)
            kernels[h] = max(p.kernel, 2 * steps + 1)
            shifts[h] = drift // p.scale + (0 if drift > 0 else 1)
        pooling = p.pooling if p.pools else "none"
        smoothed[h] = smooth_row(raw[h], at[: inputs.n_past], pooling, int(kernels[h]), int(shifts[h]))
    if p.traits.per_layer:
        smoothed = share(smoothed)
    return raw, smoothed, keep(smoothed, inputs), kernels, shifts


def head_scores(inputs: ScoreInputs, method: Attending, h: int, at: npt.NDArray[np.int64]) -> tuple[Float64, float]:
    """[N - w] raw scores of query head h, and the drift of its attention."""
    p, kv = inputs.params, h // inputs.group
    keys = inputs.k[kv].astype(np.float32)
    sink = -np.inf if inputs.sinks is None else float(inputs.sinks[h])
    head = method.lean(inputs, h)
    row = np.empty(inputs.n_cells)
    half, toward = inputs.n_rows // 2, 0
    for i, (weight, visible) in enumerate(zip(inputs.row_weights, inputs.visible.tolist(), strict=True)):
        row_logits(keys, inputs.q[h, i], inputs.attn_scale, p.softcap, visible, row)
        if p.adaptive and inputs.drift_acts(kv):
            toward += top_position_sum(row, at, inputs.n_drift) * (1 if i < half else -1)
        log_total, top, rest = log_sum_exp(row, visible, sink)
        head.row(row, log_total, weight, top, rest)
    return head.scores(), toward / (half * inputs.n_drift) if half else 0.0


def smooth_row(raw: Float32, at: npt.NDArray[np.int64], pooling: str, kernel: int, shift: int) -> Float32:
    """[L] pooled scores of one head; see the reference for what each pooling does."""
    if pooling == "none":
        return raw
    s = raw.astype(np.float64)
    out = np.empty_like(s)
    if pooling == "adaptive":
        smooth_adaptive(s, at, kernel // 2, shift, out)
    else:
        pool(s, at, kernel, pooling == "maxpool", out)
    return np.minimum(out, FLT_MAX).astype(np.float32)


@compiled(reorder=True)
def row_logits(keys: Float32, q: Float32, scale: float, softcap: float, visible: int, row: Float64) -> None:
    """Logits of one query over all cells; -inf beyond the `visible` ones."""
    for j in range(len(row)):
        if j >= visible:
            row[j] = -np.inf
            continue
        dot = 0.0
        for c in range(len(q)):
            dot += np.float64(keys[j, c]) * np.float64(q[c])
        row[j] = softcap * np.tanh(dot * scale / softcap) if softcap > 0.0 else dot * scale


@compiled(reorder=True)
def log_sum_exp(row: Float64, visible: int, sink: float) -> tuple[float, int, float]:
    """Log of the softmax denominator, the most attended cell, and 1 - its attention from the sum of the others."""
    top = int(np.argmax(row[:visible]))
    peak = max(row[top], sink)
    rest = np.exp(sink - peak)
    for j in range(visible):
        if j != top:
            rest += np.exp(row[j] - peak)
    total = rest + np.exp(row[top] - peak)
    return peak + np.log(total), top, rest / total


@compiled()
def top_position_sum(row: Float64, at: npt.NDArray[np.int64], n_top: int) -> int:
    """Sum of the positions of the n_top largest logits, ties to the lower cell."""
    cut = np.partition(row, len(row) - n_top)[len(row) - n_top]
    total = 0
    left = n_top
    for j in range(len(row)):
        if row[j] > cut:
            total += at[j]
            left -= 1
    for j in range(len(row)):
        if left == 0:
            break
        if row[j] == cut:
            total += at[j]
            left -= 1
    return total


@compiled()
def smooth_adaptive(s: Float64, at: npt.NDArray[np.int64], radius: int, shift: int, out: Float64) -> None:
    """Mean over the surviving positions around at + shift; positions beyond an end count as the end."""
    first, last = at[0], at[-1]
    begin = 0
    for j in range(len(s)):
        low, high = at[j] + shift - radius, at[j] + shift + radius
        left = min(max(first - low, 0), 2 * radius + 1)
        right = min(max(high - last, 0), 2 * radius + 1)
        total = left * s[0] + right * s[-1]
        found = left + right
        while begin < len(s) and at[begin] < low:
            begin += 1
        c = begin
        while c < len(s) and at[c] <= high:
            total += s[c]
            found += 1
            c += 1
        out[j] = total / found if found > 0 else s[j]


@compiled()
def pool(s: Float64, at: npt.NDArray[np.int64], kernel: int, largest: bool, out: Float64) -> None:
    """Maximum of the surviving neighbours, or their sum divided by `kernel` (with gaps: by their number)."""
    gap_free = at[-1] - at[0] == len(s) - 1
    radius = kernel // 2
    begin = 0
    for j in range(len(s)):
        while at[begin] < at[j] - radius:
            begin += 1
        total, best, found = 0.0, s[j], 0
        c = begin
        while c < len(s) and at[c] <= at[j] + radius:
            total += s[c]
            best = max(best, s[c])
            found += 1
            c += 1
        out[j] = best if largest else total / (kernel if gap_free else found)
