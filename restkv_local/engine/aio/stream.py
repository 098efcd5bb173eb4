"""Waiting for jobs, whole ones and streams; whoever stops waiting stops the job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .events import Event
from .worker import LOOK_SECONDS, Job, Worker

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


async def result_of(worker: Worker, job: Job) -> Any:
    """What a job gave or raised. When the task that waits is cancelled, the job is stopped, and waited for first."""
    try:
        await asyncio.wait([job.ended])
    except asyncio.CancelledError:
        await stopped(worker, job)
        raise
    return job.ended.result()


async def stopped(worker: Worker, job: Job) -> None:
    """Stop a job and wait until it has; one that has not begun is not waited for, since it never will."""
    worker.stop(job)
    while job.started and not job.ended.done():
        worker.stop(job)
        try:
            await asyncio.wait([job.ended], timeout=LOOK_SECONDS)
        except asyncio.CancelledError:
            continue  # a first one is on its way


class Stream(AsyncIterator[T], Generic[T]):
    """An answer while it is made; `async for` gives its parts.

    It is made at the engine's own speed, whether it is read or not. `aclose()`, the end of an `async with` block, a
    timeout, a cancelled task, and the last reference that goes stop it. What the engine raises is raised here once.
    """

    def __init__(self, owner: object, worker: Worker, job: Job, pick: Callable[[Event], T | None]) -> None:
        self._owner = owner  # an engine that nobody holds is closed
        self._worker = worker
        self._job = job
        self._pick = pick
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        job = self._job
        while not self._over:
            while job.arrived:
                if (item := self._pick(job.arrived.popleft())) is not None:
                    return item
            if job.ended.done():
                self._over = True
                job.ended.result()
                break
            job.changed.clear()
            try:
                await job.changed.wait()
            except asyncio.CancelledError:
                await self.aclose()
                raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop the answer; when this returns the engine is free for others. A second call does nothing."""
        self._over = True
        await stopped(self._worker, self._job)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._job.ended.done():
            self._worker.stop(self._job)
