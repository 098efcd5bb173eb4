"""How the lean version's loops are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(reorder: bool = False) -> Callable[[F], F]:
    """numba.njit, kept on disk. reorder: sums may become vectors; NaN and infinity keep their meaning."""
    fastmath = {"reassoc", "contract"} if reorder else False
    return cast("Callable[[F], F]", numba.njit(cache=True, fastmath=fastmath))
