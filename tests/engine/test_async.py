"""AsyncEngine: the answers of Engine, streams and events, and what stops them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from engines import TEMPLATE, TEXT, TINY, load
from models import write_random
from restkv_local.errors import Cancelled, ClosedError, ConfigError, ContextOverflow, LibraryError

try:
    from restkv_local import AsyncEngine
    from restkv_local.engine.aio import Event, Evict, Load, Read, Recall, Token
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

CONTEXT = 1 << 17
EVICT = TINY.with_(archive="ram")
CHAT = [{"role": "user", "content": TEXT[:300]}]
OTHER = [{"role": "user", "content": "Who keeps the weather?"}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
# Long enough that nobody waits for its end; the times that are asked hold for a cancelled one only.
LONG = list(range(5, 250)) * 400


@pytest.fixture(scope="module")
def chatty(folder: Path) -> Path:
    return write_random(folder / "async.gguf", "llama", template=TEMPLATE)


@pytest.fixture(scope="module")
def answers(chatty: Path) -> tuple[str, str]:
    """What an engine that was never stopped says to CHAT and to OTHER, each on an empty cache."""
    with load(chatty, n_ctx=CONTEXT, evict=EVICT) as engine:
        found = []
        for messages in (CHAT, OTHER):
            engine.reset()
            found.append(text_of(engine.create_chat_completion(messages, **GREEDY)))
        return found[0], found[1]


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def live(chatty: Path, body: Callable[[AsyncEngine], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    """Run a coroutine with an engine that is loaded, in a loop of its own."""

    async def main() -> Any:
        settings = {"n_threads": 1, "n_ctx": CONTEXT, "evict": EVICT, **options}
        async with asyncio_limit(60), AsyncEngine(chatty, **settings) as engine:
            return await body(engine)

    return asyncio.run(main())


class asyncio_limit:
    """A test that would hang fails; asyncio.timeout is of Python 3.11."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.handle = asyncio.get_running_loop().call_later(self.seconds, task.cancel)

    async def __aexit__(self, *_raised: object) -> None:
        self.handle.cancel()


async def said(engine: AsyncEngine, messages: list[Any]) -> str:
    await engine.reset()
    return text_of(await engine.create_chat_completion(messages, **GREEDY))


def when(found: Callable[[Event], bool]) -> tuple[asyncio.Event, Callable[[Event], None]]:
    """An asyncio.Event that is set by the first event of an engine for which `found` holds."""
    came = asyncio.Event()
    return came, lambda event: came.set() if found(event) else None


# ---- answers and events --------------------------------------------------------------------------


def test_answers_are_those_of_the_engine(chatty: Path, answers: tuple[str, str]) -> None:
    async def body(engine: AsyncEngine) -> None:
        assert (await said(engine, CHAT), await said(engine, OTHER)) == answers
        await engine.reset()
        stream = await engine.create_chat_completion(CHAT, stream=True, **GREEDY)
        parts = [chunk["choices"][0]["delta"].get("content", "") async for chunk in stream]
        assert "".join(parts) == answers[0] and len(parts) > 3
        await engine.reset()
        stream = await engine.create_completion("The sea", stream=True, **GREEDY)
        streamed = "".join([chunk["choices"][0]["text"] async for chunk in stream])
        await engine.reset()
        whole = await engine.create_completion("The sea", **GREEDY)
        assert streamed == whole["choices"][0]["text"]
        report = await engine.run(lambda inner: inner.report())
        assert report.positions == engine.report().positions and engine.plan.archive is not None

    live(chatty, body)


def test_events_come_in_order_and_in_the_loops_thread(chatty: Path, answers: tuple[str, str]) -> None:
    told: list[tuple[Event, int]] = []

    async def body(engine: AsyncEngine) -> list[Event]:
        found = [event async for event in engine.events(CHAT, guide="Who?", **GREEDY)]
        recalled = await engine.recall("Who?")
        assert recalled.cells == 64 and told[-1][0] == Recall(64, recalled.moved, recalled.seconds)
        return found

    found: list[Event] = live(chatty, body, on_event=lambda event: told.append((event, threading.get_ident())))
    loads = [event.share for event, _ in told if isinstance(event, Load)]
    assert loads == sorted(loads) and loads[-1] == 1.0 and len(loads) > 3
    assert [event for event, _ in told[len(loads) : -1]] == found, "an iterator and a callback hear the same"
    assert {thread for _, thread in told} == {threading.get_ident()}
    kinds = [type(event) for event in found]
    assert kinds[0] is Read and set(kinds) == {Read, Recall, Evict, Token}
    assert kinds.index(Evict) < kinds.index(Recall) < kinds.index(Token)
    reads = [event for event in found if isinstance(event, Read)]
    assert reads[0].done == 0 and reads[-1].done == reads[-1].total
    assert "".join(event.text for event in found if isinstance(event, Token)) == answers[0]


def test_a_guide_of_a_call(chatty: Path) -> None:
    async def body(engine: AsyncEngine) -> None:
        for question in ("Who?", "What?"):
            await engine.reset()
            await engine.create_chat_completion(CHAT, guide=question, **GREEDY)
            assert engine.report().question == question

    live(chatty, body, evict=TINY.with_(prefill="guided", reserve=128))


def test_a_callback_that_raises_harms_no_answer(chatty: Path, answers: tuple[str, str]) -> None:
    heard: list[Any] = []

    def fail(event: Event) -> None:
        raise KeyError(type(event).__name__)

    async def body(engine: AsyncEngine) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context["exception"]))
        assert await said(engine, CHAT) == answers[0]

    live(chatty, body, on_event=fail)
    assert heard and all(isinstance(error, KeyError) for error in heard)


def test_errors_are_those_of_the_engine(chatty: Path, tmp_path: Path, answers: tuple[str, str]) -> None:
    async def body(engine: AsyncEngine) -> None:
        with pytest.raises(ContextOverflow):
            await engine.create_completion(LONG * 2)
        stream = await engine.create_completion(LONG * 2, stream=True)
        with pytest.raises(ContextOverflow):
            await stream.__anext__()
        assert [chunk async for chunk in stream] == [], "once"
        with pytest.raises(ConfigError, match="guide must be"):
            await engine.create_chat_completion(CHAT, guide=5)
        assert await said(engine, OTHER) == answers[1]

    live(chatty, body)
    with pytest.raises(ConfigError, match=r"^on_evict would be called in the engine's thread"):
        AsyncEngine(chatty, on_evict=print)
    engine = AsyncEngine(chatty)
    with pytest.raises(ConfigError, match=r"^the model is not loaded yet; await load\(\) first"):
        engine.report()


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
        engine = AsyncEngine(chatty, CONTEXT, EVICT, n_threads=1, on_event=tell)
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


# Every token but those that end an answer: it ends with the context.
ENDLESS = {token: -100.0 for token in range(3)}


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
