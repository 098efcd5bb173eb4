"""Calls into code that recurses as deep as its input is long, on a thread with a stack for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ..errors import RestkvError

T = TypeVar("T")
_UNIT = 1 << 16  # some systems want whole pages
_size_lock = threading.Lock()  # the size is a setting of the whole process


def call_on_stack(work: Callable[[], T], n_bytes: int) -> T:
    """Call `work` on a thread whose stack has n_bytes. That is address space; memory is what is used of it.

    Raises what `work` raises, and RestkvError when the system has no such address space.
    """
    found: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            found.append(work())
        except BaseException as error:  # raised below, on the caller's thread
            failure.append(error)

    thread = threading.Thread(target=body, name="restkv-stack", daemon=True)
    try:
        with _size_lock:
            before = threading.stack_size(-(-n_bytes // _UNIT) * _UNIT)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
    except (RuntimeError, ValueError, OverflowError):
        raise RestkvError(
            f"a text with so long a line takes a stack of {n_bytes >> 20} MiB, which the system does not give; "
            f"break the line, or raise the limit of address space (ulimit -v)"
        ) from None
    thread.join()
    if failure:
        raise failure[0]
    return found[0]
