"""The thread in which an engine lives, and what it is given to do by event loops: one job after the other.

A job belongs to the loop that made it, and to nobody else: it knows neither the AsyncEngine nor the stream that waits
for it, so both can go while it runs.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import Cancelled
from ..guard import closed
from ..report import Eviction
from .events import Event, Evict, Load, Notice, Read, Recall

if TYPE_CHECKING:
    from ..engine import Engine

# Between two looks at whether a job has stopped: a request that came before the engine looked for one is lost.
LOOK_SECONDS = 0.02

Tell = Callable[[Event], None]


class Job:
    """Work for the thread. ended: its result, in the loop that made it. arrived: events that nobody has taken yet, of a
    job that somebody reads."""

    def __init__(self, work: Callable[[Job], Any], tell: Tell | None, *, keep: bool = False) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Any] = self.loop.create_future()
        self.arrived: deque[Event] = deque()
        self.changed = asyncio.Event()
        self.stopped = False
        self.started = False
        self._tell = tell
        self._keep = keep

    def emit(self, event: Event) -> None:
        """Tell the loop, from the thread."""
        self._call(self._arrive, event)

    def finish(self, result: Any, error: BaseException | None) -> None:
        """The work is over, from the thread."""
        self._call(self._finish, result, error)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop was closed: nobody waits any more
            self.stopped = True

    def _arrive(self, event: Event) -> None:
        if self._keep:
            self.arrived.append(event)
            self.changed.set()
        if self._tell is not None:
            self._tell(event)  # what it raises goes to the loop's exception handler

    def _finish(self, result: Any, error: BaseException | None) -> None:
        if error is None:
            self.ended.set_result(result)
        else:
            self.ended.set_exception(error)
            self.ended.exception()  # counts as seen: whoever waits gets it, and nobody has to
        self.changed.set()


class Worker:
    """make: an engine with the callbacks that it is given; called in the thread, by the first job."""

    def __init__(self, make: Callable[..., Engine]) -> None:
        self.engine: Engine | None = None
        self.closing = False
        self._make = make
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # An RLock: a stream that is collected inside the block stops its job there.
        self._lock = threading.RLock()
        self._running: Job | None = None
        self._thread: threading.Thread | None = None
        self._told = (0, 0, 0, 0.0)

    # ---- from any thread -----------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue. Raises ClosedError."""
        with self._lock:
            if self.closing:
                raise closed()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="restkv-async-engine", daemon=True)
                self._thread.start()
            self._jobs.put(job)

    def stop(self, job: Job | None) -> None:
        """Ask a job to stop, or the one that runs; without a wait."""
        with self._lock:
            job = job or self._running
            if job is None:
                return
            job.stopped = True
            if self._running is job and self.engine is not None:
                self.engine.cancel()

    def shut(self) -> None:
        """End the thread, behind the job that runs, which is stopped; the engine is closed there."""
        with self._lock:
            if not self.closing:
                self.closing = True
                self._jobs.put(None)
            self.stop(None)

    def join(self) -> None:
        """Wait for the end of the thread."""
        while self._thread is not None and self._thread.is_alive():
            self.stop(None)
            self._thread.join(LOOK_SECONDS)

    # ---- in the thread -------------------------------------------------------------------------

    def loaded(self) -> Engine:
        """The engine, for the job that runs; the first call makes it, or the next one where that fails. Raises what
        Engine raises, and Cancelled when the job was stopped meanwhile."""
        if self.engine is None:
            self.engine = self._make(
                on_load=self._on_load, on_progress=self._on_progress, on_evict=self._on_evict, on_notice=self._on_notice
            )
        self._check()
        return self.engine

    def _check(self) -> None:
        if self._running is not None and self._running.stopped:
            raise Cancelled("stopped by cancel()")

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._do(job)
            del job  # or it is held until the next one comes
        if self.engine is not None:
            self.engine.close()

    def _do(self, job: Job) -> None:
        with self._lock:
            if job.stopped:
                return job.finish(None, Cancelled("stopped before it began"))
            if self.closing:
                return job.finish(None, closed())
            job.started, self._running = True, job
        result, error = None, None
        try:
            result = job.work(job)
        except BaseException as raised:
            error = raised
        with self._lock:
            self._running = None
        job.finish(result, error)

    def _emit(self, event: Event) -> None:
        job = self._running
        if job is None:
            return
        job.emit(event)
        if job.stopped and self.engine is not None:
            self.engine.cancel()

    def _on_load(self, share: float) -> None:
        self._emit(Load(share))
        self._check()

    def _on_progress(self, done: int, total: int) -> None:
        self._recalled(done == 0)
        self._emit(Read(done, total))

    def _recalled(self, first: bool) -> None:
        """Tell what was recalled since the last chunk; first: of a prompt, whose figures begin anew."""
        if self.engine is None or self.engine.plan.archive is None:
            return
        report, before = self.engine.report(), self._told
        self._told = report.recalled, report.recalled_cells, report.copied_cells, report.recall_seconds
        if not first and report.recalled > before[0]:
            _, cells, copied, seconds = (now - then for now, then in zip(self._told, before, strict=True))
            self._emit(Recall(int(cells), int(copied), seconds))

    def _on_evict(self, eviction: Eviction) -> None:
        self._emit(Evict(eviction))

    def _on_notice(self, text: str) -> None:
        self._emit(Notice(text))
