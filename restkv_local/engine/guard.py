"""One guard in front of all that is public in an engine: a closed engine says so, and a callback may look but not work.

llama.cpp crashes on pointers that were freed, and a call that begins inside another one asserts or waits forever. So
every public method and property of Llama and of its subclasses asks here first, those that a newer llama_cpp adds too.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

from ..errors import BusyError, ClosedError

T = TypeVar("T", bound=type)

# What works on a closed engine.
_ALWAYS = frozenset({"cancel", "close", "working"})
# What callbacks may use: it asks, and changes nothing of what the running call works on.
LOOKS = frozenset(
    {
        "cancel", "cells", "ctx", "detokenize", "eval_logits", "eval_tokens", "is_end", "kept", "model", "n_ctx",
        "n_embd", "n_vocab", "pieces", "pooling_type", "prompt_text", "report", "save_state", "scored", "scores",
        "token_bos", "token_eos", "token_nl", "tokenize", "tokenizer", "working",
    }
)  # fmt: skip


def closed() -> ClosedError:
    """What every use of a closed engine raises."""
    return ClosedError("this engine is closed; make a new one")


def _check(engine: Any, name: str) -> None:
    if engine._closed and name not in _ALWAYS:
        raise closed()
    if engine._in_callback and name not in LOOKS and engine._queue.nested:
        raise BusyError(f"{name}() inside a callback of the engine would change what it works on; use cancel() there")


def guarded(cls: T) -> T:
    """A class whose public methods and properties, inherited ones included, ask the guard first."""
    for name in [*(name for name in dir(cls) if not name.startswith("_")), "__call__"]:
        found = inspect.getattr_static(cls, name)
        if inspect.isfunction(found):
            setattr(cls, name, _method(found, name))
        elif isinstance(found, property):
            setattr(cls, name, _property(found, name))
    return cls


def _method(function: Any, name: str) -> Any:
    @functools.wraps(function)
    def asked(self: Any, *args: Any, **kwargs: Any) -> Any:
        _check(self, name)
        return function(self, *args, **kwargs)

    return asked


def _property(found: property, name: str) -> property:
    getter = found.fget
    assert getter is not None

    @functools.wraps(getter)
    def asked(self: Any) -> Any:
        _check(self, name)
        return getter(self)

    return property(asked, found.fset, found.fdel, found.__doc__)


class Freed:
    """Mixed into the objects of llama_cpp that hold pointers: once they are closed, their pointers are gone, and
    whoever still holds such an object (a tokenizer does) is told so instead of crashing."""

    _POINTERS: tuple[str, ...] = ()

    def close(self) -> None:
        """Free what it holds; a second call does nothing."""
        super().close()  # type: ignore[misc]
        for name in self._POINTERS:
            self.__dict__.pop(name, None)

    def __getattr__(self, name: str) -> Any:
        if name in type(self)._POINTERS:
            raise closed()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
