"""GGUF models in a KV cache of fixed size.

    from restkv_local import Engine, EvictConfig
    engine = Engine(n_ctx=131072, evict=EvictConfig(budget=1024))
    engine.create_chat_completion([{"role": "user", "content": "Hello"}])

Names are loaded when they are first used: `import restkv_local.reference` needs no native library. Where the library is
there, llama_cpp runs on it when it is imported after this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import location
from ._version import __version__

if TYPE_CHECKING:
    from .config import EvictConfig
    from .engine.aio.engine import AsyncEngine
    from .engine.engine import Engine
    from .engine.report import ArchiveReport, Eviction, RecallReport, Report, Source
    from .engine.session_header import SavedSession
    from .errors import (
        ArchiveError,
        BusyError,
        Cancelled,
        ClosedError,
        ConfigError,
        ContextOverflow,
        EvictionError,
        ExtraError,
        LibraryError,
        ModelError,
        RestkvError,
        SessionError,
    )
    from .plan.memory import MemoryPlan

_HOMES = {
    "AsyncEngine": "engine.aio.engine",
    "Engine": "engine.engine",
    "EvictConfig": "config",
    "MemoryPlan": "plan.memory",
    "ArchiveReport": "engine.report",
    "Eviction": "engine.report",
    "RecallReport": "engine.report",
    "Report": "engine.report",
    "Source": "engine.report",
    "ArchiveError": "errors",
    "BusyError": "errors",
    "Cancelled": "errors",
    "ClosedError": "errors",
    "ConfigError": "errors",
    "ContextOverflow": "errors",
    "EvictionError": "errors",
    "ExtraError": "errors",
    "LibraryError": "errors",
    "ModelError": "errors",
    "RestkvError": "errors",
    "SavedSession": "engine.session_header",
    "SessionError": "errors",
}

__all__ = [
    "ArchiveError",
    "ArchiveReport",
    "AsyncEngine",
    "BusyError",
    "Cancelled",
    "ClosedError",
    "ConfigError",
    "ContextOverflow",
    "Engine",
    "EvictConfig",
    "Eviction",
    "EvictionError",
    "ExtraError",
    "LibraryError",
    "MemoryPlan",
    "ModelError",
    "RecallReport",
    "Report",
    "RestkvError",
    "SavedSession",
    "SessionError",
    "Source",
    "__version__",
]

location.announce()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
