"""AsyncEngine: the answers of Engine, and what is told while they are made."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from awaiting import CHAT, GREEDY, LONG, OTHER, live, said
from engines import TINY
from restkv_local.errors import ConfigError, ContextOverflow, LibraryError

try:
    from restkv_local import AsyncEngine
    from restkv_local.engine.aio import Event, Evict, Load, Read, Recall, Token
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)


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
