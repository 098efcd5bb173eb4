"""Ctrl-C during long calls into llama.cpp.

Python handles a signal when it next runs Python code. Inside such a call that is llama.cpp's log callback, and ctypes
prints and drops what a callback raises: the interrupt would be lost. So it is noted while the call runs, a load is told
to stop, and it is delivered afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import ParamSpec, TypeVar

from ..errors import Cancelled

P = ParamSpec("P")
T = TypeVar("T")


class _Noted(threading.local):
    """Of the main thread: whether interrupts are noted now, and the frame in which one came."""

    active: bool = False
    came: bool = False
    frame: FrameType | None = None


_noted = _Noted()


@contextlib.contextmanager
def late() -> Iterator[None]:
    """Ctrl-C inside the block is delivered at its end. Does nothing outside the main thread, inside another such block,
    and where Ctrl-C is ignored or ends the process at once."""
    handler = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or _noted.active or not callable(handler):
        yield
        return

    def note(signum: int, frame: FrameType | None) -> None:
        _noted.came, _noted.frame = True, frame

    _noted.active, _noted.came = True, False
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        came, frame = _noted.came, _noted.frame
        _noted.active, _noted.came, _noted.frame = False, False, None
        if came:
            handler(signal.SIGINT, frame)  # Python's own raises KeyboardInterrupt


def lately(function: Callable[P, T]) -> Callable[P, T]:
    """The whole function as a `late` block."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with late():
            return function(*args, **kwargs)

    return wrapped


def came() -> bool:
    """Whether an interrupt waits for the end of this thread's `late` block."""
    return _noted.came


def check() -> None:
    """Raise Cancelled when an interrupt waits: between two steps of a `late` block."""
    if came():
        raise Cancelled("stopped by Ctrl-C")
