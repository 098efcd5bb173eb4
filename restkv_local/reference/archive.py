"""The archive of one layer: every row of K and V that the layer has held, by position, outside its cells."""

from __future__ import annotations

import torch

from ..errors import ConfigError
from .rounding import CacheType

ARCHIVE_TYPES = ("auto", "q8_0", "q4_0")


class LayerArchive:
    """Rows of the positions [0, n_rows); nothing is sorted, moved or looked up by anything but its position.

    n_head_kv, head_dim: of the layer. cache_k, cache_v: how its cells store rows. name: one of ARCHIVE_TYPES; "auto"
    keeps a row as it reads back from the cells, and so gives back the same bits. Other types round it once more, in the
    basis of the cells (rotated where those are), and a row that comes back is rounded to the cells' type again.
    Attributes: k and v [kv_heads, n_rows, d] float32 as they read back from the archive.
    Raises ConfigError for a type that does not fit the cells'.
    """

    def __init__(self, n_head_kv: int, head_dim: int, cache_k: CacheType, cache_v: CacheType, name: str) -> None:
        self._cells = (cache_k, cache_v)
        self._types = (_type(name, head_dim, cache_k, is_key=True), _type(name, head_dim, cache_v, is_key=False))
        self.k = torch.zeros(n_head_kv, 0, head_dim)
        self.v = torch.zeros(n_head_kv, 0, head_dim)

    @property
    def n_rows(self) -> int:
        """Positions that are archived."""
        return int(self.k.shape[1])

    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Add the rows of the next positions: k and v [kv_heads, n, d] as they read back from the cells."""
        k, v = (x if own is None else own.store(x) for x, own in zip((k, v), self._types, strict=True))
        self.k, self.v = torch.cat([self.k, k], dim=1), torch.cat([self.v, v], dim=1)

    def truncate(self, n_rows: int) -> None:
        """Forget every position at or after n_rows."""
        self.k, self.v = self.k[:, :n_rows], self.v[:, :n_rows]

    def rows(self, pos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """k and v [kv_heads, n, d] of the positions pos [kv_heads, n], as cells hold them."""
        at = pos[:, :, None].expand(-1, -1, self.k.shape[2])
        k, v = torch.gather(self.k, 1, at), torch.gather(self.v, 1, at)
        own_k, own_v = self._types
        return (k if own_k is None else self._cells[0].store(k)), (v if own_v is None else self._cells[1].store(v))


def _type(name: str, head_dim: int, cells: CacheType, *, is_key: bool) -> CacheType | None:
    """How the archive rounds K or V; None: as the cells did already."""
    if name not in ARCHIVE_TYPES:
        raise ConfigError(f"archive_type must be one of {', '.join(ARCHIVE_TYPES)}; got '{name}'")
    if name in ("auto", cells.name):
        return None
    if name == "q4_0" and not cells.quantized:
        raise ConfigError(
            f"archive_type q4_0 needs rotated rows, which a cache of type {cells.name} does not have; use archive_type "
            "'q8_0', or kv_type 'q8_0'"
        )
    return CacheType(name, head_dim, is_key=is_key, n_rot=cells.n_rot)
