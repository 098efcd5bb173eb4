"""Stage attend: the attention of the window's queries over all cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .inputs import ScoreInputs


@dataclass(frozen=True)
class Attention:
    """Attention of the window's rows, oldest first.

    logits: [H, rows, N] float64, -inf where a row may not look.
    log_total: [H, rows] log of the softmax denominators.
    sink_weight: [H, rows] attention of the sink, which is no cell; 0 for models without one.
    """

    logits: Tensor
    log_total: Tensor
    sink_weight: Tensor

    @property
    def log_weights(self) -> Tensor:
        """[H, rows, N] log of the attention."""
        return self.logits - self.log_total[:, :, None]

    @property
    def weights(self) -> Tensor:
        """[H, rows, N] attention; a row sums to 1 over all cells (and the attention sink, where the model has one)."""
        return torch.exp(self.log_weights)

    @property
    def others(self) -> Tensor:
        """[H, rows, N] 1 - attention; of the most attended cell the sum of the others: 1 - a may have no digits."""
        top = self.logits.argmax(dim=-1, keepdim=True)
        rest = self.weights.scatter(2, top, 0.0).sum(dim=-1, keepdim=True) + self.sink_weight[:, :, None]
        return (-torch.expm1(self.log_weights)).scatter(2, top, rest)


def repeat_heads(x: Tensor, group: int) -> Tensor:
    """[Hk, ...] -> [H, ...]: query head h reads KV head h // group."""
    return x.repeat_interleave(group, dim=0)


def attend(inputs: ScoreInputs) -> Attention:
    """Window attention: q.k * scale, causal inside the window, softmax over all N cells (ReST-KV, SnapKV)."""
    q = torch.from_numpy(inputs.q).double()
    k = repeat_heads(torch.from_numpy(inputs.k).double(), inputs.group)
    logits = torch.einsum("hid,hjd->hij", q, k) * inputs.attn_scale
    if inputs.params.softcap:
        logits = inputs.params.softcap * torch.tanh(logits / inputs.params.softcap)

    cell = torch.arange(inputs.n_cells)[None, :]
    logits = logits.masked_fill(cell >= torch.from_numpy(inputs.visible)[:, None], -torch.inf)

    log_total = torch.logsumexp(logits, dim=-1)
    if inputs.sinks is None:
        return Attention(logits, log_total, torch.zeros_like(log_total))
    sink = torch.from_numpy(inputs.sinks).double()[:, None]
    log_total = torch.logaddexp(log_total, sink)
    return Attention(logits, log_total, torch.exp(sink - log_total))
