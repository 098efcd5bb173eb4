"""The cache of one layer: each KV head holds its own positions, keys and values, ascending by position."""

from __future__ import annotations

import torch

from .rounding import CacheType


class LayerCache:
    """Cells of one layer and the ring of its last queries.

    n_head, n_head_kv, head_dim: of the layer. ring: queries remembered (rows of the window, or of a guide).
    type_k, type_v: how rows are stored. Attributes: pos [kv_heads, N] int64, k and v [kv_heads, N, d] float32 as they
    read back, votes [kv_heads, N] float64, the attention of every query so far, summed (only `vote` adds to it). Heads
    may hold different numbers of cells, the last of N: before them pos is -1.
    """

    def __init__(self, n_head: int, n_head_kv: int, head_dim: int, ring: int, type_k: str, type_v: str) -> None:
        self.type_k = CacheType(type_k, head_dim, is_key=True)
        self.type_v = CacheType(type_v, head_dim, is_key=False)
        self._n_head = n_head
        self.pos = torch.zeros(n_head_kv, 0, dtype=torch.int64)
        self.k = torch.zeros(n_head_kv, 0, head_dim)
        self.v = torch.zeros(n_head_kv, 0, head_dim)
        self.votes = torch.zeros(n_head_kv, 0, dtype=torch.float64)
        self._ring = ring
        self._q = torch.zeros(n_head, 0, head_dim)
        self._q_pos = torch.zeros(0, dtype=torch.int64)

    @property
    def cells(self) -> int:
        """Cells in use by the KV head that has most."""
        return int(self.pos.shape[1])

    @property
    def held(self) -> list[int]:
        """[kv_heads] cells in use."""
        return [int(n) for n in (self.pos >= 0).sum(dim=1)]

    def append(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pos: torch.Tensor) -> None:
        """Add a chunk: q [heads, n, d], k and v [kv_heads, n, d] after RoPE, pos [n]."""
        self.pos = torch.cat([self.pos, pos.expand(self.pos.shape[0], -1)], dim=1)
        self.k = torch.cat([self.k, self.type_k.store(k)], dim=1)
        self.v = torch.cat([self.v, self.type_v.store(v)], dim=1)
        self.votes = torch.cat([self.votes, self.votes.new_zeros(len(self.votes), len(pos))], dim=1)
        # A slot of the ring belongs to position % ring: rows of a dropped guide have overwritten older ones for good.
        last = int(pos[-1])
        old = self._q_pos > last - self._ring
        new = pos > last - self._ring
        self._q = torch.cat([self._q[:, old], q[:, new]], dim=1)
        self._q_pos = torch.cat([self._q_pos[old], pos[new]])

    def vote(
        self, q: torch.Tensor, pos: torch.Tensor, *, scale: float, softcap: float, sinks: torch.Tensor | None
    ) -> None:
        """Every query of a chunk votes for the cells up to its own: its attention, the mean of a KV head's group (H2O).

        Arguments as of `attend`; the chunk has been appended.
        """
        n_head, n, d = q.shape
        z = q.double().reshape(len(self.pos), -1, n, d) @ self.k.double().unsqueeze(1).transpose(-1, -2) * scale
        if softcap:
            z = softcap * torch.tanh(z / softcap)
        z = z.masked_fill((pos[:, None] < self.pos[:, None, :]).unsqueeze(1), float("-inf"))
        total = torch.logsumexp(z, dim=-1, keepdim=True)
        if sinks is not None:
            total = torch.logaddexp(total, sinks.double().reshape(len(self.pos), -1, 1, 1))
        self.votes += torch.exp(z - total).mean(dim=1).sum(dim=1)

    def window_queries(self, rows: int, *, even: bool) -> torch.Tensor:
        """The last `rows` queries by position [heads, r, d]; r is smaller when fewer are remembered, and then even when
        asked for (the drift compares halves)."""
        have = min(rows, int(self._q_pos.shape[0]))
        have -= have % 2 if even and have < rows else 0
        return self._q[:, self._q.shape[1] - have :]

    def last_queries(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The last `rows` queries by position, or as many as are remembered: [heads, r, d], and their positions [r]."""
        first = max(0, int(self._q_pos.shape[0]) - rows)
        return self._q[:, first:], self._q_pos[first:]

    def keep(self, sets: list[torch.Tensor]) -> None:
        """Keep only these cells: [kv_heads] sets of cells of the head, ascending; they may differ in size."""
        most = max(len(cells) for cells in sets)
        pos = self.pos.new_full((len(sets), most), -1)
        k, v = (x.new_zeros((len(sets), most, x.shape[2])) for x in (self.k, self.v))
        votes = self.votes.new_zeros((len(sets), most))
        for h, cells in enumerate(sets):
            begin = most - len(cells)
            pos[h, begin:], k[h, begin:], v[h, begin:] = self.pos[h, cells], self.k[h, cells], self.v[h, cells]
            votes[h, begin:] = self.votes[h, cells]
        self.pos, self.k, self.v, self.votes = pos, k, v, votes

    def swap(self, pos: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_tail: int) -> None:
        """Put other rows in the place of all cells but the last n_tail: pos [kv_heads, n] ascending, all of them before
        those of the tail; k and v [kv_heads, n, d] as they read back from cells."""
        first = self.cells - n_tail
        self.pos = torch.cat([pos, self.pos[:, first:]], dim=1)
        self.k, self.v = torch.cat([k, self.k[:, first:]], dim=1), torch.cat([v, self.v[:, first:]], dim=1)
        # no method that has an archive votes
        self.votes = self.votes.new_zeros(self.pos.shape)

    def truncate(self, position: int) -> None:
        """Drop every cell and query at or after a position; these are the last cells of every KV head."""
        n = self.cells - int((self.pos[0] >= position).sum())
        self.pos, self.k, self.v, self.votes = self.pos[:, :n], self.k[:, :n], self.v[:, :n], self.votes[:, :n]
        known = self._q_pos < position
        self._q, self._q_pos = self._q[:, known], self._q_pos[known]

    def attend(
        self,
        q: torch.Tensor,
        pos: torch.Tensor,
        *,
        scale: float,
        softcap: float,
        sinks: torch.Tensor | None,
        n_swa: int,
    ) -> torch.Tensor:
        """Causal attention of a chunk over all cells.

        q [heads, n, d], pos [n]; sinks: [heads] logits that take part in the softmax and carry no value; n_swa: a cell
        that many positions back is out of sight (0: none is). Returns [n, heads * d].
        """
        n_head, n, d = q.shape
        group = n_head // self.pos.shape[0]
        q = self.type_k.round_query(q, self.type_v).reshape(-1, group, n, d)
        z = q @ self.k.unsqueeze(1).transpose(-1, -2) * scale
        if softcap:
            z = softcap * torch.tanh(z / softcap)
        back = pos[:, None] - self.pos[:, None, :]
        hidden = (back < 0) | (back >= n_swa) if n_swa else back < 0
        hidden = hidden | (self.pos[:, None, :] < 0)
        z = z.masked_fill(hidden.unsqueeze(1), float("-inf"))
        if sinks is not None:
            extra = sinks.reshape(-1, group, 1, 1).expand(-1, -1, n, 1)
            weights = torch.softmax(torch.cat([z, extra], dim=-1), dim=-1)[..., :-1]
        else:
            weights = torch.softmax(z, dim=-1)
        out = weights @ self.v.unsqueeze(1)
        return out.reshape(n_head, n, d).transpose(0, 1).reshape(n, n_head * d)
