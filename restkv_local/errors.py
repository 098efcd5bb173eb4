"""Typed errors. Each message is one sentence that says what to do."""

from __future__ import annotations


class RestkvError(Exception):
    """Base of every error that this package raises on purpose."""


class LibraryError(RestkvError):
    """The patched llama.cpp library is missing, foreign or of another version."""


class ConfigError(RestkvError, ValueError):
    """A setting is out of range or does not fit the others."""


class ExtraError(RestkvError, ImportError):
    """A package is missing that only a part of this one needs: one of an extra."""


class SessionError(ConfigError):
    """A session file cannot be read or written, is damaged, or was saved by another model or with other settings."""


class ModelError(RestkvError, ValueError):
    """The model file cannot be used, or its attention cannot be evicted."""


class ContextOverflow(RestkvError, ValueError):
    """The text is longer than the context (a limit in positions). needed, context: positions that it takes, and that
    there are; 0 where that is not known."""

    def __init__(self, message: str = "", needed: int = 0, context: int = 0) -> None:
        super().__init__(message)
        self.needed, self.context = needed, context


class Cancelled(RestkvError):
    """`Engine.cancel()` stopped a prefill or an answer; the cache is consistent."""


class BusyError(RestkvError, RuntimeError):
    """The engine cannot take this call now: it comes from one of its callbacks, or an answer is still streamed."""


class ClosedError(RestkvError, RuntimeError):
    """The engine was closed; whatever is asked of it, but `cancel()` and `close()`, raises this."""


class EvictionError(RestkvError, RuntimeError):
    """The native side refused or failed an eviction."""


class ArchiveError(EvictionError):
    """Rows could not be written to the archive, or those in it are damaged; the cache is consistent."""
