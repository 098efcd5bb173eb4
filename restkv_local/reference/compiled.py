"""How the lean version's loops are compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

LOGGER = logging.getLogger("restkv_local")

F = TypeVar("F", bound=Callable[..., Any])


def compiled(reorder: bool = False) -> Callable[[F], F]:
    """numba.njit, kept on disk where there is a place for it. reorder: sums may become vectors; NaN and infinity keep
    their meaning."""
    fastmath = {"reassoc", "contract"} if reorder else False

    def compile_(function: F) -> F:
        try:
            return cast("F", numba.njit(cache=True, fastmath=fastmath)(function))
        except RuntimeError as error:  # no folder to keep it in can be written
            LOGGER.info("%s is compiled anew in each process: %s", function.__name__, error)
            return cast("F", numba.njit(fastmath=fastmath)(function))

    return compile_
