"""What happens in an engine, as it is told to an event loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..report import Eviction


@dataclass(frozen=True)
class Load:
    """share: of the weights that is loaded, from 0 to 1."""

    share: float


@dataclass(frozen=True)
class Read:
    """Tokens of a prompt: those that are read and all that have to be; at 0, after each chunk and at the end."""

    done: int
    total: int


@dataclass(frozen=True)
class Recall:
    """Cells were chosen again. cells: chosen, per layer and KV head; copied: of them, those that came from the archive;
    seconds: that it took."""

    cells: int
    copied: int
    seconds: float


@dataclass(frozen=True)
class Evict:
    """An eviction."""

    eviction: Eviction


@dataclass(frozen=True)
class Token:
    """A part of an answer. chunk: as llama_cpp gives it."""

    text: str
    chunk: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Notice:
    """A sentence that a user should see."""

    text: str


Event = Load | Read | Recall | Evict | Token | Notice


def token_of(chunk: dict[str, Any]) -> Token:
    """The event of a chunk of a completion or of a chat."""
    choice = chunk["choices"][0]
    text = choice["text"] if "text" in choice else choice["delta"].get("content")
    return Token(text or "", chunk)
