"""Runs the engine beside the terminal: the engine works in a thread, drawing and Ctrl-C stay in the main one.

A C call that reads a long text does not return to Python for seconds, and Python handles a signal only between its own
instructions. With the engine in a thread, Ctrl-C reaches `cancel()` at once and the native side stops within a ubatch.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ...errors import Cancelled

# Seconds between two looks at the clock while nothing arrives.
TICK = 0.1


@dataclass(frozen=True)
class Piece:
    """Text of the answer."""

    text: str


@dataclass(frozen=True)
class Progress:
    """Tokens of the prompt that are read, and all of them."""

    done: int
    total: int


@dataclass(frozen=True)
class Notice:
    """A sentence for the user."""

    text: str


Event = Piece | Progress | Notice
Emit = Callable[[Event], None]
Draw = Callable[[Event | None], None]


class Mailbox:
    """Where the engine's callbacks put events; they may be called from any thread."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Event] = queue.Queue()

    def put(self, event: Event) -> None:
        self._queue.put(event)

    def progress(self, done: int, total: int) -> None:
        """For `Engine(on_progress=...)`."""
        self.put(Progress(done, total))

    def notice(self, text: str) -> None:
        """For `Engine(on_notice=...)`."""
        self.put(Notice(text))

    def get(self, seconds: float) -> Event | None:
        """The next event; None when none came in time."""
        try:
            return self._queue.get(timeout=seconds)
        except queue.Empty:
            return None

    def rest(self) -> Iterator[Event]:
        """What is left, without waiting."""
        while not self._queue.empty():
            yield self._queue.get_nowait()


def run(work: Callable[[], None], cancel: Callable[[], None], mailbox: Mailbox, draw: Draw) -> bool:
    """Run `work` in a thread and draw its events here until it ends. True when Ctrl-C stopped it.

    draw gets None at least every TICK seconds. Errors of `work` other than Cancelled are raised here.
    """
    failure: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # handed to the main thread below
            failure.append(error)

    thread = threading.Thread(target=body, name="restkv-engine", daemon=True)
    with _interrupts(cancel) as interrupted:
        thread.start()
        try:
            while thread.is_alive():
                draw(mailbox.get(TICK))
                if interrupted.is_set() and thread.is_alive():
                    # A request that came before the work looked for one would be lost.
                    cancel()
            for event in mailbox.rest():
                draw(event)
        finally:
            while thread.is_alive():
                cancel()
                thread.join(TICK)
    if failure and not isinstance(failure[0], Cancelled):
        raise failure[0]
    return bool(failure) or interrupted.is_set()


@contextmanager
def _interrupts(cancel: Callable[[], None]) -> Iterator[threading.Event]:
    """While inside, Ctrl-C calls `cancel` and sets the event instead of raising KeyboardInterrupt."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        interrupted.set()
        cancel()

    before: Any = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
