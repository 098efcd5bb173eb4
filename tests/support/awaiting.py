"""What tests of AsyncEngine ask of it, in event loops of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import TEXT, TINY

if TYPE_CHECKING:
    from restkv_local import AsyncEngine
    from restkv_local.engine.aio import Event

CONTEXT = 1 << 17
ARCHIVED = TINY.with_(archive="ram")
CHAT = [{"role": "user", "content": TEXT[:300]}]
OTHER = [{"role": "user", "content": "Who keeps the weather?"}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
# Long enough that nobody waits for its end; the times that are asked hold for a cancelled one only.
LONG = list(range(5, 250)) * 400
# Every token but those that end an answer: it ends with the context.
ENDLESS = {token: -100.0 for token in range(3)}


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


class Limit:
    """A test that would hang fails; asyncio.timeout is of Python 3.11."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.handle = asyncio.get_running_loop().call_later(self.seconds, task.cancel)

    async def __aexit__(self, *_raised: object) -> None:
        self.handle.cancel()


def live(path: Path, body: Callable[[AsyncEngine], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    """Run a coroutine with an engine that is loaded, in a loop of its own."""
    from restkv_local import AsyncEngine

    async def main() -> Any:
        settings = {"n_threads": 1, "n_ctx": CONTEXT, "evict": ARCHIVED, **options}
        async with Limit(60), AsyncEngine(path, **settings) as engine:
            return await body(engine)

    return asyncio.run(main())


async def said(engine: AsyncEngine, messages: list[Any]) -> str:
    await engine.reset()
    return text_of(await engine.create_chat_completion(messages, **GREEDY))


def when(found: Callable[[Event], bool]) -> tuple[asyncio.Event, Callable[[Event], None]]:
    """An asyncio.Event that is set by the first event of an engine for which `found` holds."""
    came = asyncio.Event()
    return came, lambda event: came.set() if found(event) else None
