"""Logits of the last tokens, in place of llama-cpp-python's array of n_batch x n_vocab floats (250 MiB and more)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class LogitRows(np.ndarray[Any, np.dtype[np.float32]]):
    """Rows [first, first + n) of the matrix [position, n_vocab] that llama-cpp-python indexes by position.

    A position before `first` gives the last row: that is the one which a stopping criterion asks for (Llama.generate
    asks for row 0 there). A slice that names its start gives a plain array.
    """

    first: int

    def __array_finalize__(self, obj: Any) -> None:
        self.first = getattr(obj, "first", 0)

    def __getitem__(self, index: Any) -> Any:
        if self.ndim != 2:
            return np.asarray(self)[index]
        row, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if isinstance(row, (int, np.integer)):
            row = int(row)
            if row >= 0:
                row = row - self.first if row >= self.first else -1
            return np.asarray(self)[(row, *rest)]
        if isinstance(row, slice) and row.step is None:
            moved = slice(self._move(row.start), self._move(row.stop))
            part = np.asarray(self)[(moved, *rest)]
            return part if row.start is not None else rows(part, self.first)
        return np.asarray(self)[index]

    def _move(self, bound: int | None) -> int | None:
        return bound if bound is None or bound < 0 else max(0, bound - self.first)


def rows(values: npt.NDArray[np.float32], first: int) -> LogitRows:
    """View a matrix [n, n_vocab] as the rows from position `first` on."""
    view = values.view(LogitRows)
    view.first = first
    return view
