"""Recall: which archived positions a layer's cells shall hold, one function per stage.

Design of our own, after QuoKA (ICLR 2026), FreeKV (2505.13109) and RocketKV (2502.14051).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import GUIDE_MAX, RECALL_KERNEL, RECALL_ROWS, RECALL_SINKS, whole_in_range
from ..errors import ConfigError
from .attend import repeat_heads
from .select import select


@dataclass(frozen=True)
class RecallSettings:
    """n_rows: queries that speak, per query head. kernel: positions that are averaged, odd. sinks: first positions that
    are always chosen. n_guide: most tokens of a guide whose queries are remembered."""

    n_rows: int = RECALL_ROWS
    kernel: int = RECALL_KERNEL
    sinks: int = RECALL_SINKS
    n_guide: int = GUIDE_MAX

    def __post_init__(self) -> None:
        whole_in_range("n_rows", self.n_rows, 1, 2**31 - 1)
        whole_in_range("kernel", self.kernel, 1, 2**31 - 1)
        whole_in_range("sinks", self.sinks, 0, 2**31 - 1)
        whole_in_range("n_guide", self.n_guide, 0, 2**31 - 1)
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd; try {self.kernel + 1}")

    def check(self, budget: int, window: int) -> None:
        """Refuse a budget that what is always chosen fills: nothing could be recalled."""
        least = window + self.sinks + 1
        if budget < least:
            raise ConfigError(
                f"with an archive the budget must be at least {least}: a window of {window}, {self.sinks} first "
                f"positions and one that is recalled; got {budget}"
            )


def recall_score(
    q: Tensor,
    q_pos: Tensor,
    k: Tensor,
    k_own: Tensor,
    *,
    settings: RecallSettings,
    budget: int,
    window: int,
    attn_scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """All stages, of one layer.

    q: [H, n, d] queries after RoPE, at the positions q_pos [n]. k: [Hk, N, d] archived keys of the positions 0 .. N-1.
    k_own: [Hk, n_own, d] keys of the positions behind them. attn_scale, softcap, sinks: the model's own attention.
    Returns the scores [Hk, N] float32 and the chosen positions [Hk, min(budget, N)] int64, ascending.
    """
    rows = outlying_rows(q, settings.n_rows)
    speaking = torch.gather(q, 1, rows[:, :, None].expand(-1, -1, q.shape[2]))
    a = weights(speaking, q_pos[rows], k, k_own, attn_scale=attn_scale, softcap=softcap, sinks=sinks)
    y = box(group_scores(a, k.shape[0]), settings.kernel)
    return y, choose(y, budget, window, settings.sinks)


def outlying_rows(q: Tensor, n_rows: int) -> Tensor:
    """[H, min(n_rows, n)] int64, ascending: the queries q [H, n, d] of a head that point farthest from the others.

    u_i = q_i / |q_i| (0 for a query of zeros), m = mean_i u_i; the smallest u_i . m, ties to the earlier query (QuoKA).
    """
    n = q.shape[1]
    x = q.double()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    u = torch.where(length > 0, x / length, torch.zeros_like(x))
    likeness = (u * u.mean(dim=1, keepdim=True)).sum(dim=-1)
    order = torch.sort(likeness, dim=-1, stable=True).indices
    return torch.sort(order[:, : min(n_rows, n)], dim=-1).values


def likeness(a: Tensor, b: Tensor) -> float:
    """The mean over the heads of the cosine of two queries of a layer [H, d]; that of a query of zeros is 0. Float64.

    How far an answer has moved from what it asked when its cells were chosen (FreeKV, 2505.13109; LouisKV, 2510.11292).
    """
    a, b = a.double(), b.double()
    length = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    product = (a * b).sum(dim=-1)
    return float(torch.where(length > 0, product / length, torch.zeros_like(product)).mean())


def weights(
    q: Tensor, q_pos: Tensor, k: Tensor, k_own: Tensor, *, attn_scale: float, softcap: float, sinks: Tensor | None
) -> Tensor:
    """[H, r, N] float32: attention of the rows q [H, r, d], at the positions q_pos [H, r], to the archived positions.

    The softmax is over the archived keys k [Hk, N, d] and the own ones k_own [Hk, n_own, d] behind them, up to a row's
    own position, and over the attention sink, where the model has one.
    """
    n, keys = k.shape[1], torch.cat([k, k_own], dim=1)
    z = q.float() @ repeat_heads(keys.float(), q.shape[0] // k.shape[0]).transpose(1, 2) * attn_scale
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    z = z.masked_fill(torch.arange(keys.shape[1]) > q_pos[:, :, None], -torch.inf)
    if sinks is not None:
        z = torch.cat([z, sinks.float()[:, None, None].expand(-1, z.shape[1], 1)], dim=-1)
    return torch.softmax(z, dim=-1)[:, :, :n]


def group_scores(a: Tensor, n_head_kv: int) -> Tensor:
    """[Hk, N] float32: mean over the query heads of a group of the largest attention of their rows, a [H, r, N]."""
    best = a.amax(dim=1).reshape(n_head_kv, -1, a.shape[2])
    total = torch.zeros_like(best[:, 0])
    for head in range(best.shape[1]):
        total = total + best[:, head]
    return total / best.shape[1]


def box(s: Tensor, kernel: int) -> Tensor:
    """[Hk, N] float32: mean of s [Hk, N] over the positions at most kernel // 2 away that are there.

    Summed in float32 from the lowest position on.
    """
    n, radius = s.shape[1], kernel // 2
    total, found = torch.zeros_like(s), torch.zeros(n)
    for offset in range(-radius, radius + 1):
        here = slice(max(0, -offset), max(0, min(n, n - offset)))
        there = slice(here.start + offset, here.stop + offset)
        if here.start < here.stop:
            total[:, here] += s[:, there]
            found[here] += 1
    return total / found


def choose(y: Tensor, budget: int, window: int, sinks: int) -> Tensor:
    """[Hk, min(budget, N)] int64, ascending: the first `sinks` positions, the last `window`, and the best of the rest
    by their scores y [Hk, N], ties to the lower position."""
    n_heads, n = y.shape
    if n <= budget:
        return torch.arange(n).repeat(n_heads, 1)
    best = select(y[:, sinks : n - window].numpy(), budget - sinks - window).astype(np.int64) + sinks
    first, last = torch.arange(sinks).repeat(n_heads, 1), torch.arange(n - window, n).repeat(n_heads, 1)
    return torch.cat([first, torch.from_numpy(best), last], dim=1)


def restored(held: list[int], position: int, budget: int, window: int, sinks: int) -> list[int]:
    """Positions that a KV head holds after a cut at `position`, ascending: all when the budget holds them; else the
    first `sinks`, the last `window`, then the highest of those it `held`, then the highest it did not hold."""
    if position <= budget:
        return list(range(position))
    always = [*range(sinks), *range(position - window, position)]
    rest = range(sinks, position - window)
    kept = set(held)
    wanted = sorted(rest, key=lambda p: (p not in kept, -p))[: budget - len(always)]
    return sorted(always + wanted)
