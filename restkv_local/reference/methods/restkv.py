"""ReST-KV (ICLR 2026): the change of the output when a cell goes, averaged over the rows; and its ablation, whose
indicators are the attention itself. Source: its published code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConfigError
from .attention import AttentionMax, AttentionSum, attention_max, attention_sum
from .rows import Attending, Float64, HeadScores

if TYPE_CHECKING:
    from torch import Tensor

    from ..attend import Attention
    from ..inputs import ScoreInputs

# The ablation of the published code: temporal smoothing `ts` (the weighting of the rows).
_ROWS = {"ema": "ema", "mean": "mean", "inv-ema": "inverted-ema", "inv_ema": "inverted-ema", "none": "last"}
_INDICATORS = {"attn": "attention", "attn-v": "attention-value-norm", "reconstruction": "reconstruction"}
_ABLATION_KERNEL = 5


def literal(attention: Attention, inputs: ScoreInputs) -> Tensor:
    """[H, N - w] scores by indicator and metric_mode."""
    import torch

    from ..attend import repeat_heads
    from ..removal import score_after, score_before

    if inputs.params.indicator == "reconstruction":
        return (score_after if inputs.params.metric_mode == "after" else score_before)(attention, inputs)
    raw = (attention_max if inputs.params.rows == "max" else attention_sum)(attention, inputs)
    if inputs.params.indicator == "attention-value-norm":
        raw = raw * repeat_heads(torch.from_numpy(inputs.v).double(), inputs.group)[:, : inputs.n_past].norm(dim=-1)
    return raw


def lean(inputs: ScoreInputs, head: int) -> HeadScores:
    """The same of one query head."""
    from ..lean_removal import ScoreAfter, ScoreBefore

    if inputs.params.indicator == "reconstruction":
        return (ScoreAfter if inputs.params.metric_mode == "after" else ScoreBefore)(inputs, head)
    scores = (AttentionMax if inputs.params.rows == "max" else AttentionSum)(inputs, head)
    return TimesValueNorm(scores, inputs, head) if inputs.params.indicator == "attention-value-norm" else scores


class TimesValueNorm:
    """Scores times the length of the value."""

    def __init__(self, of: HeadScores, inputs: ScoreInputs, head: int) -> None:
        self.of, self.row = of, of.row
        self.v = inputs.v[head // inputs.group, : inputs.n_past].astype(np.float32)

    def scores(self) -> Float64:
        lengths: Float64 = np.sqrt(np.einsum("jd,jd->j", self.v, self.v, dtype=np.float64))
        return self.of.scores() * lengths


def row_weights(inputs: ScoreInputs) -> Float64:
    """[rows] weights of an average, oldest first, or of a sum ("sum"); without a say in the largest ("max")."""
    rows, kind = inputs.n_rows, inputs.params.rows_used
    if kind in ("sum", "max"):
        return np.ones(rows)
    if kind == "mean":
        return np.full(rows, 1.0 / rows)
    if kind == "last":
        return np.where(np.arange(rows) == rows - 1, 1.0, 0.0)
    alpha = 2.0 / (rows + 1) if inputs.params.alpha is None else inputs.params.alpha
    weights: Float64 = alpha * (1.0 - alpha) ** np.arange(rows - 1, -1, -1, dtype=np.float64)
    weights[0] = (1.0 - alpha) ** (rows - 1)  # the average starts at its first value, not at zero
    return np.ascontiguousarray(weights[::-1]) if kind == "inverted-ema" else weights


def ablation(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of the ablation of the published code: attention is summed over the rows and always average-pooled,
    whatever `ts` and `ss` (spatial smoothing) say; both act on the reconstruction."""
    params = dict(params)
    indicator = _known("indicator", params.pop("indicator", "reconstruction"), _INDICATORS)
    rows = _known("ts", params.pop("ts", "ema"), _ROWS)
    pooling = params.pop("ss", "adaptive")
    if indicator != "reconstruction":
        rows, pooling = "sum", "avgpool"
    params.setdefault("kernel", _ABLATION_KERNEL)
    return params | {"indicator": indicator, "rows": rows, "pooling": pooling}


def _known(name: str, value: Any, known: dict[str, str]) -> str:
    if value in known.values():
        return str(value)
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    return known[value]


REFERENCE = Attending(literal, lean, row_weights, published={"ablation": ablation})
