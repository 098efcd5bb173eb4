"""AsyncEngine: what stops it, tasks that wait for each other, streams that are left, and its end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from awaiting import ARCHIVED, CHAT, CONTEXT, ENDLESS, GREEDY, LONG, OTHER, live, said, text_of, when
from engines import TINY
from restkv_local.errors import Cancelled, ClosedError, LibraryError

try:
    from restkv_local import AsyncEngine
    from restkv_local.engine.aio import Load, Read
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)


# ---- stopping ------------------------------------------------------------------------------------


def test_a_cancelled_task_stops_reading_and_leaves_the_engine_right(chatty: Path, answers: tuple[str, str]) -> None:
    reading, tell = when(lambda event: isinstance(event, Read) and event.done > 0)

    async def body(engine: AsyncEngine) -> None:
        task = asyncio.create_task(engine.create_completion(LONG, max_tokens=4, temperature=0.0))
        await reading.wait()
        start = time.perf_counter()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.perf_counter() - start < 0.5
        read = engine.report().positions
        assert 0 < read < len(LONG)
        assert not await engine.run(lambda inner: inner._queue.busy and inner._stop.value)
        short = LONG[: read + 40]
        again = await engine.create_completion(short, **GREEDY)
        assert engine.report().reused_tokens == read
        await engine.reset()
        assert (await engine.create_completion(short, **GREEDY))["choices"] == again["choices"]
        assert (await said(engine, CHAT), await said(engine, OTHER)) == answers

    live(chatty, body, on_event=tell)


def test_a_timeout_stops_an_answer(chatty: Path, answers: tuple[str, str]) -> None:
    async def body(engine: AsyncEngine) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.create_completion([5, 6, 7], max_tokens=None, logit_bias=ENDLESS), 0.2)
        async def read_all() -> None:
            async for _ in engine.events(CHAT, max_tokens=None, logit_bias=ENDLESS):
                pass

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(read_all(), 0.2)
        start = time.perf_counter()
        assert await said(engine, CHAT) == answers[0]
        assert time.perf_counter() - start < 5.0

    live(chatty, body)


def test_a_load_is_cancelled_where_weights_are_read(chatty: Path, answers: tuple[str, str]) -> None:
    async def main() -> None:
        loading, tell = when(lambda event: isinstance(event, Load))
        engine = AsyncEngine(chatty, CONTEXT, ARCHIVED, n_threads=1, on_event=tell)
        load = threading.Event()
        make = engine._worker._make

        def slow(**callbacks: Any) -> Any:
            def on_load(share: float) -> None:
                callbacks["on_load"](share)
                load.wait(0.2 if share < 0.5 else 0)  # as a large model does

            return make(**{**callbacks, "on_load": on_load})

        engine._worker._make = slow
        task = asyncio.create_task(engine.load())
        await loading.wait()
        start = time.perf_counter()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.perf_counter() - start < 0.5 and engine._worker.engine is None
        load.set()
        assert await said(engine, OTHER) == answers[1], "the next call loads"
        await engine.close()

    asyncio.run(main())


def test_cancel_raises_in_the_call_that_runs(chatty: Path) -> None:
    reading, tell = when(lambda event: isinstance(event, Read) and event.done > 0)

    async def body(engine: AsyncEngine) -> None:
        task = asyncio.create_task(engine.eval(LONG))
        waits = asyncio.create_task(engine.create_chat_completion(OTHER, **GREEDY))
        await reading.wait()
        engine.cancel()
        with pytest.raises(Cancelled):
            await task
        assert text_of(await waits), "it only waited"

    live(chatty, body, on_event=tell)


# ---- several at once -----------------------------------------------------------------------------


def test_tasks_queue_and_one_that_waits_leaves_at_once(chatty: Path, answers: tuple[str, str]) -> None:
    reading, tell = when(lambda event: isinstance(event, Read) and event.done > 0)

    async def body(engine: AsyncEngine) -> None:
        ended: list[int] = []

        async def one(n: int) -> str:
            answer = await said(engine, (CHAT, OTHER)[n])
            ended.append(n)
            return answer

        assert tuple(await asyncio.gather(one(0), one(1))) == answers and ended == [0, 1]
        long = asyncio.create_task(engine.eval(LONG))
        await reading.wait()
        waits = asyncio.create_task(engine.reset())
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert not long.done(), "it was not its turn"
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        assert engine.report().positions > 0, "what left the queue did not run"

    live(chatty, body, on_event=tell)


@pytest.mark.parametrize("how", ["dropped", "closed", "raised"])
def test_a_stream_that_is_left_half_way_ends(chatty: Path, answers: tuple[str, str], how: str) -> None:
    async def body(engine: AsyncEngine) -> None:
        stream = await engine.create_chat_completion(CHAT, stream=True, max_tokens=None, logit_bias=ENDLESS)
        for _ in range(3):
            await stream.__anext__()
        if how == "dropped":
            del stream
            gc.collect()
        elif how == "closed":
            await stream.aclose()
            await stream.aclose()
            assert [chunk async for chunk in stream] == []
        else:
            with pytest.raises(KeyError):
                async with stream:
                    async for _ in stream:
                        raise KeyError("of the consumer")
        start = time.perf_counter()
        await engine.run(lambda inner: None)
        assert time.perf_counter() - start < 0.5
        assert engine.report().positions < CONTEXT // 2
        assert await said(engine, CHAT) == answers[0]

    live(chatty, body)


def test_a_stream_that_nobody_reads_holds_nobody_up(chatty: Path, answers: tuple[str, str]) -> None:
    async def body(engine: AsyncEngine) -> None:
        await engine.reset()
        stream = await engine.create_chat_completion(CHAT, stream=True, **GREEDY)
        assert await said(engine, OTHER) == answers[1]
        parts = [chunk["choices"][0]["delta"].get("content", "") async for chunk in stream]
        assert "".join(parts) == answers[0], "it is there for whoever comes late"

    live(chatty, body)


# ---- closing -------------------------------------------------------------------------------------


def test_close_ends_what_runs_and_what_waits(chatty: Path) -> None:
    reading, tell = when(lambda event: isinstance(event, Read) and event.done > 0)

    async def body(engine: AsyncEngine) -> None:
        runs, waits = asyncio.create_task(engine.eval(LONG)), asyncio.create_task(engine.reset())
        await reading.wait()
        start = time.perf_counter()
        await asyncio.gather(engine.close(), engine.close())
        assert time.perf_counter() - start < 0.5
        with pytest.raises(Cancelled):
            await runs
        for call in (lambda: waits, engine.reset, engine.load, lambda: engine.create_completion("Hi", stream=True)):
            with pytest.raises(ClosedError, match=r"^this engine is closed; make a new one$"):
                await call()
        with pytest.raises(ClosedError):
            engine.report()
        await engine.close()

    live(chatty, body, on_event=tell)


def threads() -> int:
    return sum(thread.name == "restkv-async-engine" for thread in threading.enumerate())


def test_an_engine_that_nobody_holds_ends_its_thread(chatty: Path) -> None:
    async def main() -> None:
        stream = await AsyncEngine(chatty, 512, TINY, n_threads=1).create_completion("Hi", stream=True, max_tokens=3)
        assert len([chunk async for chunk in stream]) > 1, "a stream holds its engine"
        assert threads() == 1
        inner = stream._worker.engine
        del stream
        gc.collect()
        for _ in range(200):
            if not threads():
                break
            await asyncio.sleep(0.01)
        assert threads() == 0 and inner is not None and inner._closed

    asyncio.run(main())


def test_a_loop_that_ends_first_leaves_no_work(chatty: Path) -> None:
    engine = AsyncEngine(chatty, CONTEXT, TINY, n_threads=1)

    async def leave() -> Any:
        stream = await engine.create_completion("Hi", stream=True, max_tokens=None, logit_bias=ENDLESS)
        await stream.__anext__()
        return stream

    held = asyncio.run(leave())

    async def again() -> None:
        start = time.perf_counter()
        await engine.reset()
        assert time.perf_counter() - start < 0.5
        await engine.close()

    asyncio.run(again())
    assert held is not None
