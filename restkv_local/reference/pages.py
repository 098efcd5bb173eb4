"""A recall of pages: blocks of neighbouring positions, scored by a summary of their keys, of a size per KV head.

AB-Sparse (Liu et al., 2026, arXiv 2605.12110) proposes a block size per attention head, chosen by a calibration, and
scores a block by its centroid. Theirs: sizes that differ from head to head, centroids (the mean key of a block), a
calibration beforehand. Ours, as only the abstract was at hand: the sizes that are tried, the rule that chooses among
them (`largest_sizes`), and everything that a recall of single positions does too (`recall`), so that pages are all that
differs: the queries that speak, the maximum over them, the mean over a group, the positions that are always chosen.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .attend import repeat_heads
from .model import ReferenceEngine
from .recall import RecallSettings, group_scores, outlying_rows, recall_score

PAGE_SIZES = (8, 16, 32, 64)
# Of the score that single positions bring into the cells, the part that pages of a size must bring too.
PAGE_SHARE = 0.9


class PagedEngine(ReferenceEngine):
    """A ReferenceEngine with an archive whose recalls choose pages."""

    @functools.cached_property
    def sizes(self) -> dict[int, list[int]]:
        """Of each full-attention layer that has recalled the sizes [kv_heads] of its pages: found by its first recall,
        which is the calibration."""
        return {}

    def _choose(self, il: int, q: Tensor, q_pos: Tensor, n_own: int) -> Tensor:
        spec, cache, archive = self.model.spec, self._caches[il], self._archives[il]
        assert self.budget is not None
        settings, budget, window = self._settings, self.budget, self._window
        n, n_kv = archive.n_rows, archive.k.shape[0]
        if n <= budget:
            return torch.arange(n).repeat(n_kv, 1)
        keys = (archive.k, cache.k[:, cache.cells - n_own :])
        model: dict[str, Any] = {
            "attn_scale": spec.attn_scale, "softcap": spec.attn_softcap, "sinks": self.model.layers[il].sinks
        }  # fmt: skip
        found = {
            size: choose_pages(
                page_scores(q, q_pos, *keys, size=size, settings=settings, **model), size, n, budget, window,
                settings.sinks,
            )
            for size in (PAGE_SIZES if il not in self.sizes else sorted(set(self.sizes[il])))
        }  # fmt: skip
        if il not in self.sizes:
            y, single = recall_score(q, q_pos, *keys, settings=settings, budget=budget, window=window, **model)
            free = slice(settings.sinks, budget - window)
            self.sizes[il] = largest_sizes(y, single[:, free], {size: pos[:, free] for size, pos in found.items()})
        return torch.stack([found[size][head] for head, size in enumerate(self.sizes[il])])


def page_scores(
    q: Tensor, q_pos: Tensor, k: Tensor, k_own: Tensor, *, size: int, settings: RecallSettings, attn_scale: float,
    softcap: float, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """[Hk, pages] float32: attention to each page, as if all its keys were their mean. Arguments as of `recall_score`.

    The pages begin at the multiples of `size`; the last one may be shorter.
    """
    rows = outlying_rows(q, settings.n_rows)
    speaking = torch.gather(q, 1, rows[:, :, None].expand(-1, -1, q.shape[2])).float()
    means, counts = centroids(k.float(), size)
    n, n_pages = k.shape[1], means.shape[1]
    keys = repeat_heads(torch.cat([means, k_own.float()], dim=1), q.shape[0] // k.shape[0])
    z = speaking @ keys.transpose(1, 2) * attn_scale
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    own = n + torch.arange(k_own.shape[1])
    z = torch.cat([
        z[..., :n_pages] + counts.log(),
        z[..., n_pages:].masked_fill(own > q_pos[rows][:, :, None], -torch.inf),
    ], dim=-1)  # fmt: skip
    if sinks is not None:
        z = torch.cat([z, sinks.float()[:, None, None].expand(-1, z.shape[1], 1)], dim=-1)
    return group_scores(torch.softmax(z, dim=-1)[..., :n_pages], k.shape[0])


def centroids(k: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The mean key [Hk, pages, d] of each page of keys k [Hk, N, d], and how many positions it has [pages]."""
    n_kv, n, d = k.shape
    n_pages = -(-n // size)
    padded = torch.cat([k, k.new_zeros(n_kv, n_pages * size - n, d)], dim=1)
    counts = torch.full((n_pages,), float(size))
    counts[-1] = n - (n_pages - 1) * size
    return padded.reshape(n_kv, n_pages, size, d).sum(dim=2) / counts[:, None], counts


def choose_pages(y: Tensor, size: int, n: int, budget: int, window: int, sinks: int) -> Tensor:
    """[Hk, budget] int64, ascending, of n > budget positions: the first `sinks`, the last `window`, and the best pages
    by their scores y [Hk, pages], ties to the lower one; of the last page that fits in part, its first positions."""
    order = torch.sort(y, dim=1, descending=True, stable=True).indices
    inside = (order[:, :, None] * size + torch.arange(size)).flatten(1)
    always = torch.cat([torch.arange(sinks), torch.arange(n - window, n)])
    chosen = [
        torch.cat([always, row[(row >= sinks) & (row < n - window)][: budget - sinks - window]]) for row in inside
    ]
    return torch.stack(chosen).sort(dim=1).values


def largest_sizes(y: Tensor, single: Tensor, paged: dict[int, Tensor], share: float = PAGE_SHARE) -> list[int]:
    """[Hk] of each KV head the largest size whose pages hold at least `share` of the score of the best single
    positions, else the smallest.

    y: [Hk, N] scores of single positions, pooled. single: [Hk, n] the best of them. paged: of each size the positions
    [Hk, n] of its pages. Both without those that are always chosen.
    """
    best = torch.gather(y, 1, single).sum(dim=1)
    kept = {size: torch.gather(y, 1, pos).sum(dim=1) for size, pos in paged.items()}
    return [
        max((size for size in kept if kept[size][head] >= share * best[head]), default=min(kept))
        for head in range(len(y))
    ]
