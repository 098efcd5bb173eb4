"""One engine, many threads: calls queue, and a streamed answer holds its place between two tokens."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

from ..errors import BusyError

# A thread that waits for its own unfinished stream would wait forever.
OWN_STREAM_WAIT = 2.0


class Queue:
    """Lets one caller at a time use an engine; nested calls of the same thread pass.

    A streamed answer is a generator that different threads may advance (servers do), so the place belongs to a ticket,
    not to a thread.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ticket: object | None = None
        self._active: int | None = None  # the thread that is inside a call now
        self._last: int | None = None  # the thread that was inside last

    @property
    def busy(self) -> bool:
        """Whether a call is under way, suspended streams included."""
        return self._ticket is not None

    @property
    def working(self) -> bool:
        """Whether a thread is inside a call now."""
        return self._active is not None

    @property
    def nested(self) -> bool:
        """Whether this thread is inside a call already."""
        return self._active == threading.get_ident()

    def enter(self, ticket: object) -> None:
        """Wait for the engine. Raises BusyError when this thread itself holds it, by a call or an unfinished stream."""
        me = threading.get_ident()
        with self._changed:
            if self.nested:
                raise BusyError("an answer cannot be read inside a callback of the engine that gives it")
            while self._ticket is not None:
                own = self._active is None and self._last == me
                if not self._changed.wait(OWN_STREAM_WAIT if own else None) and own and self._ticket is not None:
                    raise BusyError("an answer of this engine is still being streamed; finish it or close() it first")
            self._ticket = ticket
            self._last = me

    def leave(self, ticket: object) -> None:
        """Give the place to the next caller."""
        with self._changed:
            if self._ticket is ticket:
                self._ticket = None
                self._changed.notify_all()

    def release(self) -> None:
        """Take the place from whoever holds it: the engine is closed, and callers shall find out."""
        with self._changed:
            self._ticket = None
            self._changed.notify_all()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """The block during which this thread works with the engine."""
        with self._changed:
            self._active = self._last = threading.get_ident()
        try:
            yield
        finally:
            with self._changed:
                self._active = None
                self._changed.notify_all()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """A whole call in one block; inside another call of the same thread it changes nothing."""
        if self.nested:
            yield
            return
        ticket = object()
        self.enter(ticket)
        try:
            with self.step():
                yield
        finally:
            self.leave(ticket)

    @contextlib.contextmanager
    def pause(self, wait: bool = False) -> Iterator[bool]:
        """Keep every other thread from working during a short block; a suspended stream does not count as work.

        The value is False when another thread is inside a call now; with `wait` that one is waited for.
        """
        with self._changed:
            while wait and self._active is not None and not self.nested:
                self._changed.wait()
            yield self._active is None or self.nested

    def run(
        self, generator: Generator[Any, Any, Any], on_start: Callable[[], None], on_end: Callable[[], None]
    ) -> Generator[Any, Any, Any]:
        """Advance a generator while holding the engine from its first step to its end."""
        ticket = object()
        self.enter(ticket)
        try:
            on_start()
            sent = None
            while True:
                with self.step():
                    try:
                        item = generator.send(sent)
                    except StopIteration:
                        return
                sent = yield item
        finally:
            with self.step():
                generator.close()
                on_end()
            self.leave(ticket)
