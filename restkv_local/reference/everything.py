"""A reference engine that can attend to all that was read: the ceiling of how a text was read."""

from __future__ import annotations

import torch

from .model import ReferenceEngine


class WholeEngine(ReferenceEngine):
    """A ReferenceEngine with an archive. Once `attend_to_everything` was called, a chunk that is read with recall finds
    every archived position in the cells, in every layer, and nothing is evicted any more."""

    _everything = False

    def attend_to_everything(self) -> None:
        """From now on."""
        self._everything = True
        self.capacity = None

    def _choose(self, il: int, q: torch.Tensor, q_pos: torch.Tensor, n_own: int) -> torch.Tensor:
        if not self._everything:
            return super()._choose(il, q, q_pos, n_own)
        archive = self._archives[il]
        return torch.arange(archive.n_rows).repeat(archive.k.shape[0], 1)
