"""Stage smooth: pooling of the scores along the text, with a kernel that follows the drift of the attention."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from .attend import Attention
from .inputs import FLT_MAX, Float32, Int32, ScoreInputs


def measure_drift(attention: Attention, inputs: ScoreInputs) -> npt.NDArray[np.float64]:
    """[H] mean position of the most attended cells, first half of the window minus second half (ReST-KV).

    Per row the budget - window most attended of all N cells count, window and sinks included; ties go to the lower
    cell. Above 0: the attention moves toward earlier text.
    """
    order = torch.sort(attention.logits, dim=-1, descending=True, stable=True).indices
    top = order[:, :, : inputs.n_drift]
    pos = torch.from_numpy(np.repeat(inputs.positions(), inputs.group, axis=0))
    total = torch.gather(pos[:, None, :].expand(-1, top.shape[1], -1), 2, top).sum(dim=2)  # int64: exact
    half = inputs.n_rows // 2
    difference = total[:, :half].sum(dim=1) - total[:, half:].sum(dim=1)
    drift: npt.NDArray[np.float64] = difference.numpy() / float(half * inputs.n_drift)
    return drift


def kernel_and_shift(drift: npt.NDArray[np.float64], inputs: ScoreInputs) -> tuple[Int32, Int32]:
    """[H] width and shift of the adaptive kernel (ReST-KV): n = |drift| // scale steps widen it and move it.

    A drift of exactly 0 shifts by 1, as published; where positions are given and their span is at most `scale`, the
    drift is not looked at.
    """
    p = inputs.params
    acts = np.repeat([inputs.drift_acts(head) for head in range(inputs.n_kv_heads)], inputs.group)
    steps = np.floor(drift / p.scale)
    kernel = np.maximum(p.kernel, 2 * np.floor(np.abs(drift) / p.scale) + 1)
    shift = np.where(drift > 0, steps, steps + 1)
    return np.where(acts, kernel, p.kernel).astype(np.int32), np.where(acts, shift, 0).astype(np.int32)


def smooth(raw: Float32, kernels: Int32, shifts: Int32, inputs: ScoreInputs) -> Float32:
    """[H, N - w] pooled scores; summed in float64. Where cells have gaps in the text only neighbours in the text count:
    a cell that is gone is skipped, and the mean is over those found."""
    pooled = np.empty_like(raw)
    pos = inputs.positions()[:, : inputs.n_past]
    for h in range(inputs.n_heads):
        s, at = raw[h].astype(np.float64), pos[h // inputs.group]
        if inputs.params.pooling == "adaptive":
            y = smooth_adaptive(s, at, int(kernels[h]), int(shifts[h]))
        elif inputs.params.pooling == "avgpool":
            y = smooth_avgpool(s, at, inputs.params.kernel)
        elif inputs.params.pooling == "maxpool":
            y = smooth_maxpool(s, at, inputs.params.kernel)
        else:
            y = s
        pooled[h] = np.minimum(y, FLT_MAX)
    return pooled


def smooth_adaptive(
    s: npt.NDArray[np.float64], pos: npt.NDArray[np.int64], kernel: int, shift: int
) -> npt.NDArray[np.float64]:
    """Mean over the `kernel` positions around pos + shift; the ends of the text are replicated (ReST-KV)."""
    total, found = np.zeros_like(s), np.zeros_like(s)
    for offset in range(-(kernel // 2), kernel // 2 + 1):
        cell, present = lookup(pos, np.clip(pos + shift + offset, pos[0], pos[-1]))
        total += np.where(present, s[cell], 0.0)
        found += present
    return np.where(found > 0, total / np.maximum(found, 1), s)


def smooth_avgpool(s: npt.NDArray[np.float64], pos: npt.NDArray[np.int64], kernel: int) -> npt.NDArray[np.float64]:
    """Sum over the neighbours divided by `kernel`, zeros beyond the ends (SnapKV); with gaps, their mean."""
    total, found = np.zeros_like(s), np.zeros_like(s)
    for offset in range(-(kernel // 2), kernel // 2 + 1):
        cell, present = lookup(pos, pos + offset)
        total += np.where(present, s[cell], 0.0)
        found += present
    gap_free = pos[-1] - pos[0] == len(pos) - 1
    return total / (kernel if gap_free else found)


def smooth_maxpool(s: npt.NDArray[np.float64], pos: npt.NDArray[np.int64], kernel: int) -> npt.NDArray[np.float64]:
    """Largest of the neighbours (SnapKV)."""
    best = s.copy()
    for offset in range(-(kernel // 2), kernel // 2 + 1):
        cell, present = lookup(pos, pos + offset)
        best = np.where(present, np.maximum(best, s[cell]), best)
    return best


def lookup(
    pos: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Cell that holds each wanted position, and whether one does."""
    cell = np.minimum(np.searchsorted(pos, wanted), len(pos) - 1)
    return cell, pos[cell] == wanted
