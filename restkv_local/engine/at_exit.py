"""Engines are closed before Python ends: a daemon thread that still works in one would meet freed memory."""

from __future__ import annotations

import atexit
import time
import weakref
from typing import Protocol

# A callback of the host program, which does not look at `cancel`, holds the end up no longer.
WAIT_SECONDS = 10.0
_LOOK_SECONDS = 0.01


class Closable(Protocol):
    """An engine."""

    @property
    def working(self) -> bool:
        """Whether a thread is inside a call now."""

    def cancel(self) -> None:
        """Stop that call."""

    def close(self) -> None:
        """Free the model; a second call does nothing."""


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def watch(engine: Closable) -> None:
    """Close an engine when Python ends, unless it was closed before."""
    _open.add(engine)


@atexit.register
def _close_all() -> None:
    until = time.monotonic() + WAIT_SECONDS
    for engine in list(_open):
        while engine.working and time.monotonic() < until:
            engine.cancel()
            time.sleep(_LOOK_SECONDS)
        if not engine.working:
            engine.close()
