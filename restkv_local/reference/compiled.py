"""How the lean version's loops are compiled."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

from . import missing

LOGGER = logging.getLogger("restkv_local")

F = TypeVar("F", bound=Callable[..., Any])


def compiled(reorder: bool = False) -> Callable[[F], F]:
    """numba.njit, kept on disk where there is a place for it. reorder: sums may become vectors; NaN and infinity keep
    their meaning.

    numba, which takes seconds to load, is loaded by the first call; so no compiled function can call another one.
    That call raises ExtraError where numba is not installed.
    """
    fastmath = {"reassoc", "contract"} if reorder else False

    def decorate(function: F) -> F:
        @functools.cache
        def machine_code() -> F:
            try:
                import numba
            except ModuleNotFoundError as error:
                raise missing("numba", error) from None

            try:
                return cast("F", numba.njit(cache=True, fastmath=fastmath)(function))
            except RuntimeError as error:  # no folder to keep it in can be written
                LOGGER.info("%s is compiled anew in each process: %s", function.__name__, error)
                return cast("F", numba.njit(fastmath=fastmath)(function))

        @functools.wraps(function)
        def run(*args: Any) -> Any:
            return machine_code()(*args)

        return cast("F", run)

    return decorate
