"""An engine for asyncio: one thread of its own beside the event loop.

    async with AsyncEngine("model.gguf") as engine:
        async for event in engine.events([{"role": "user", "content": "Hello"}]):
            print(event)
"""

from __future__ import annotations

from .engine import AsyncEngine
from .events import Event, Evict, Load, Notice, Read, Recall, Token
from .stream import Stream

__all__ = ["AsyncEngine", "Event", "Evict", "Load", "Notice", "Read", "Recall", "Stream", "Token"]
