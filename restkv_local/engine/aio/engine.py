"""AsyncEngine: an Engine in a thread of its own, for programs that run on asyncio."""

from __future__ import annotations

import asyncio
import functools
import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from ...config import DEFAULT_CONTEXT, EvictConfig
from ...errors import Cancelled, ConfigError
from ...plan.memory import MemoryPlan
from ..engine import Engine
from ..guard import closed
from ..report import RecallReport, Report
from .events import Event, Recall, Token, token_of
from .stream import Stream, result_of
from .worker import Job, Worker

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

_OURS = ("on_load", "on_progress", "on_evict", "on_notice")


class AsyncEngine:
    """An engine that is awaited.

    model_path, n_ctx, evict and other keyword arguments are those of `Engine`. on_event: called with every event, in
    the thread of the event loop that made the call; what it raises goes to the loop's exception handler.

    All work is done by one thread, in the order of the calls: two tasks that call at once wait for each other, and the
    loop never waits. The model is loaded by `async with`, by `load()`, or by the first call. A task that is cancelled,
    by a timeout too, stops the engine within one ubatch (a load where weights are read), waits for that, and leaves it
    as `Engine.cancel` does: the next call goes on. A call that has not begun is only taken out of the queue.
    Errors are those of Engine. Raises ConfigError for a callback of Engine.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | None = None,
        n_ctx: int = DEFAULT_CONTEXT,
        evict: EvictConfig | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        **options: Any,
    ) -> None:
        for name in _OURS:
            if name in options:
                raise ConfigError(f"{name} would be called in the engine's thread; use on_event, or events()")
        self._on_event = on_event
        self._worker = Worker(functools.partial(Engine, model_path, n_ctx, evict, **options))
        # at exit the engine itself is closed, see at_exit.py
        self._end = weakref.finalize(self, self._worker.shut)
        self._end.atexit = False

    async def __aenter__(self) -> Self:
        """The engine, loaded; it is closed at the end of the block."""
        try:
            await self.load()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self.close()

    async def load(self) -> None:
        """Load the model, where it is not loaded. Raises what Engine raises."""
        await self.run(lambda engine: None)

    async def close(self) -> None:
        """Stop what runs, free model and cache, and end the thread. Calls that wait raise ClosedError. A second call
        does nothing."""
        self._worker.shut()
        await asyncio.to_thread(self._worker.join)

    def cancel(self) -> None:
        """Stop the call that runs, from any thread; it raises Cancelled. Those that wait are not touched."""
        self._worker.stop(None)

    # ---- calls ---------------------------------------------------------------------------------

    async def run(self, function: Callable[[Engine], T]) -> T:
        """What a function of the engine gives, run in its thread: for all that has no method here."""
        worker = self._worker
        found: T = await self._call(lambda job: function(worker.loaded()))
        return found

    async def create_chat_completion(self, messages: list[Any], *, stream: bool = False, **options: Any) -> Any:
        """Engine.create_chat_completion, with `guide`: the answer as a dict; with stream=True a Stream of chunks."""
        return await self._complete("create_chat_completion", messages, stream, options)

    async def create_completion(self, prompt: str | list[int], *, stream: bool = False, **options: Any) -> Any:
        """Engine.create_completion, with `guide`: the answer as a dict; with stream=True a Stream of chunks."""
        return await self._complete("create_completion", prompt, stream, options)

    def events(self, messages: list[Any], **options: Any) -> Stream[Event]:
        """A chat completion as one iterator over all that happens: Load, Read, Recall, Evict, Notice, Token.

        Call it inside the event loop. Options are those of create_chat_completion.
        """
        return self._stream("create_chat_completion", messages, options, lambda event: event)

    async def eval(self, tokens: Sequence[int]) -> None:
        """Engine.eval: read tokens behind what is there."""
        await self.run(lambda engine: engine.eval(tokens))

    async def recall(self, question: str | Sequence[int] | None = None) -> RecallReport:
        """Engine.recall: choose the cells again, for what is going to be asked."""
        worker = self._worker

        def work(job: Job) -> RecallReport:
            found = worker.loaded().recall(question)
            job.emit(Recall(found.cells, found.moved, found.seconds))
            return found

        found: RecallReport = await self._call(work)
        return found

    async def reset(self) -> None:
        """Engine.reset: forget the text."""
        await self.run(lambda engine: engine.reset())

    # ---- looks, at any time --------------------------------------------------------------------

    @property
    def plan(self) -> MemoryPlan:
        """The plan of the engine. Raises ConfigError before it is loaded; `restkv_local.plan.plan` needs no load."""
        return self._loaded().plan

    def report(self) -> Report:
        """Engine.report; while the engine works, as of its last chunk. Raises ConfigError before it is loaded."""
        return self._loaded().report()

    def _loaded(self) -> Engine:
        if self._worker.closing:
            raise closed()
        if self._worker.engine is None:
            raise ConfigError("the model is not loaded yet; await load() first, or use `async with`")
        return self._worker.engine

    # ---- jobs ----------------------------------------------------------------------------------

    async def _call(self, work: Callable[[Job], Any]) -> Any:
        job = Job(work, self._on_event)
        self._worker.submit(job)
        return await result_of(self._worker, job)

    async def _complete(self, name: str, prompt: Any, stream: bool, options: dict[str, Any]) -> Any:
        if stream:
            return self._stream(name, prompt, options, lambda event: event.chunk if isinstance(event, Token) else None)
        return await self.run(lambda engine: getattr(engine, name)(prompt, **options))

    def _stream(
        self, name: str, prompt: Any, options: dict[str, Any], pick: Callable[[Event], T | None]
    ) -> Stream[T]:
        worker = self._worker

        def work(job: Job) -> None:
            with closing(getattr(worker.loaded(), name)(prompt, stream=True, **options)) as chunks:
                for chunk in chunks:
                    job.emit(token_of(chunk))
                    if job.stopped:
                        raise Cancelled("stopped by cancel()")

        job = Job(work, self._on_event, keep=True)
        worker.submit(job)
        return Stream(self, worker, job, pick)
