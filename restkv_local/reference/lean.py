"""`score_lean`: the same scores with memory in proportion to the number of cells, for texts of any length (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .compiled import compiled
from .inputs import FLT_MAX, ODDS_MAX, Float32, ScoreInputs, Scores, prepare
from .lean_queryless import queryless
from .select import keep, share

Float64 = npt.NDArray[np.float64]
# Cells projected at a time: bounds the scratch, whatever the number of cells.
TILE = 4096
TINY = float(np.finfo(np.float64).tiny)


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
    if p.traits.queries == "none":
        raw = smoothed = queryless(inputs)
        return raw, smoothed, keep(smoothed, inputs), kernels, shifts

    raw = np.empty((inputs.n_heads, inputs.n_past), dtype=np.float32)
    smoothed = np.empty_like(raw)
    positions = inputs.positions()
    for h in range(inputs.n_heads):
        kv = h // inputs.group
        at = np.ascontiguousarray(positions[kv])
        scores, drift = head_scores(inputs, h, kv, at)
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


def head_scores(inputs: ScoreInputs, h: int, kv: int, at: npt.NDArray[np.int64]) -> tuple[Float64, float]:
    """[N - w] raw scores of query head h, and the drift of its attention."""
    p, past = inputs.params, inputs.n_past
    keys, values = inputs.k[kv].astype(np.float32), inputs.v[kv].astype(np.float32)
    factor = factor_wo(inputs, h)
    plain = p.method != "restkv" or p.indicator != "reconstruction"  # attention is the score
    before = not plain and p.metric_mode == "before"
    projected = project(values, factor) if before else np.empty((0, 0))
    sink = -np.inf if inputs.sinks is None else float(inputs.sinks[h])

    mass, others, total = np.zeros(past), np.zeros(past), np.zeros(past)
    row = np.empty(inputs.n_cells)
    half, toward = inputs.n_rows // 2, 0
    for i, (weight, visible) in enumerate(zip(inputs.row_weights, inputs.visible.tolist(), strict=True)):
        row_logits(keys, inputs.q[h, i], inputs.attn_scale, p.softcap, visible, row)
        if p.adaptive and inputs.drift_acts(kv):
            toward += top_position_sum(row, at, inputs.n_drift) * (1 if i < half else -1)
        log_total, top, rest = log_sum_exp(row, visible, sink)
        if before and weight > 0.0:
            output = row_output(row, log_total, projected)
            norm = float(np.linalg.norm(output)) if p.use_norm else 1.0
            add_metric(row, log_total, projected, output, weight, norm, top, rest, total)
        elif not before:
            add_row(row, log_total, weight, top, rest, mass, others)
    drift = toward / (half * inputs.n_drift) if half else 0.0
    if plain:
        if p.method == "restkv" and p.indicator == "attention-value-norm":
            mass *= np.sqrt(np.einsum("jd,jd->j", values[:past], values[:past], dtype=np.float64))
        return (mass / inputs.n_rows if p.mean_rows else mass), drift
    return (total if before else score_after(inputs, mass, others, values[:past], factor)), drift


def factor_wo(inputs: ScoreInputs, h: int) -> Float64 | None:
    """R of the head's block of the output projection, so that ||W x|| = ||R x||; no square is ever expanded."""
    if inputs.wo is None:
        return None
    d = inputs.head_size
    block = inputs.wo[:, h * d : (h + 1) * d].astype(np.float64)
    return np.asarray(np.linalg.qr(block, mode="r"))


def project(x: npt.NDArray[Any], factor: Float64 | None) -> Float64:
    """[n, d] -> [n, r] by the factor of W, or x itself in float64."""
    return x.astype(np.float64) if factor is None else x.astype(np.float64) @ factor.T


def score_after(inputs: ScoreInputs, mass: Float64, others: Float64, v: Float32, factor: Float64 | None) -> Float64:
    """Odds of the averaged attention times the distance of each value to the averaged output."""
    output = weighted_sum(mass, v)
    distance = np.empty(len(v))
    for start in range(0, len(v), TILE):
        tile = project(output - v[start : start + TILE], factor)
        distance[start : start + TILE] = np.sqrt(np.einsum("jd,jd->j", tile, tile))
    saturated = others * ODDS_MAX <= mass
    for j in np.flatnonzero(saturated):  # at most one
        without = mass.copy()
        without[j] = 0.0
        output = weighted_sum(without, v) / others[j] if others[j] > 0.0 else np.zeros(v.shape[1])
        distance[j] = np.linalg.norm(project(output - v[j], factor)) / ODDS_MAX
    if inputs.params.use_wo:
        distance **= inputs.params.tau
    odds = np.where(saturated, ODDS_MAX, mass / np.where(saturated, 1.0, others))
    scores: Float64 = odds * distance
    return scores


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


@compiled(reorder=True)
def add_row(
    row: Float64, log_total: float, weight: float, top: int, rest: float, mass: Float64, others: Float64
) -> None:
    """mass += weight * a, others += weight * (1 - a); `rest` is 1 - a of cell `top`."""
    for j in range(len(mass)):
        log_a = row[j] - log_total
        mass[j] += weight * np.exp(log_a)
        others[j] += weight * (rest if j == top else -np.expm1(log_a))


@compiled(reorder=True)
def weighted_sum(mass: Float64, v: Float32) -> Float64:
    out = np.zeros(v.shape[1])
    for j in range(len(mass)):
        for c in range(len(out)):
            out[c] += mass[j] * np.float64(v[j, c])
    return out


@compiled(reorder=True)
def row_output(row: Float64, log_total: float, projected: Float64) -> Float64:
    """Projected attention output of one row, over all cells."""
    out = np.zeros(projected.shape[1])
    for j in range(len(row)):
        a = np.exp(row[j] - log_total)
        for c in range(len(out)):
            out[c] += a * projected[j, c]
    return out


@compiled(reorder=True)
def add_metric(
    row: Float64,
    log_total: float,
    projected: Float64,
    output: Float64,
    weight: float,
    norm: float,
    top: int,
    rest: float,
    total: Float64,
) -> None:
    """total += weight * odds * distance / norm of one row (metric before aggregation)."""
    inverse = 1.0 / norm if norm > 0.0 else np.inf
    for j in range(len(total)):
        log_a = row[j] - log_total
        a = np.exp(log_a)
        others = rest if j == top else -np.expm1(log_a)
        square = 0.0
        if others * ODDS_MAX > a:
            for c in range(len(output)):
                square += (output[c] - projected[j, c]) ** 2
            total[j] += weight * a / others * np.sqrt(square) * inverse
        else:  # the cell is its own output: compare it with the output of the others
            for c in range(len(output)):
                without = 0.0
                for i in range(len(row)):
                    if i != j and others > 0.0:
                        without += np.exp(row[i] - log_total) * projected[i, c]
                square += (without / max(others, TINY) - projected[j, c]) ** 2
            total[j] += weight * np.sqrt(square) * inverse


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
