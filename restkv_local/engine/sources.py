"""Where an answer came from: the passages of its prompt that its tokens looked at most.

A token is found by the query of the token before it. Its attention to the cells is joined over layers and heads by the
largest: heads that copy look at one place with all they have, and in a mean they drown in those that always look at the
newest positions.
"""

from __future__ import annotations

import codecs
import ctypes
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..config import RECALL_SINKS, SOURCE_CHARS, SOURCE_KERNEL, SOURCE_SHARE, EvictConfig, archive_place
from ..errors import ConfigError
from ..native.binding import LIBRARY
from .report import Source

Weights = npt.NDArray[np.float32]

# Where a sentence ends, or a line.
_END = re.compile(r"[.!?\u2026][\"')\]\u00bb\u201d\u2019]*(?=\s)|[\u3002\uff01\uff1f]|\n")


@dataclass
class Answer:
    """The answer that a cache ends with. start: position of its first token. question: what was asked, where that is
    known. weights: what its tokens looked at so far, per position of the prompt, 4 bytes each; seen: position up to
    which they did; tokens: how many of them."""

    start: int
    question: str | None = None
    weights: Weights | None = None
    seen: int = field(init=False)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.seen = self.start - 1  # the query before the first token found that

    def look(self, ctx: Any, n_tokens: int) -> None:
        """Add what the tokens up to position n_tokens looked at, as far as their queries are remembered.

        Raises ModelError where no queries are kept, EvictionError where none is left.
        """
        if self.weights is None:
            self.weights = np.zeros(self.start, dtype=np.float32)
        if n_tokens <= self.seen:
            return
        looked = ctypes.c_uint32(0)
        native.check(
            LIBRARY.restkv_look(
                ctx, n_tokens - self.seen, self.weights.ctypes.data, self.start, ctypes.byref(looked)
            )
        )
        self.seen, self.tokens = n_tokens, self.tokens + looked.value


def check_queries(evict: EvictConfig) -> None:
    """Refuse settings with which a cache keeps no queries. Raises ConfigError."""
    if evict.method == "full":
        raise ConfigError("method 'full' keeps no queries that tell where an answer came from; use another")
    if evict.traits.queries == "none" and archive_place(evict.archive) == "none":
        raise ConfigError(
            f"method '{evict.method}' keeps no queries that tell where an answer came from; use an archive, or "
            f"method '{EvictConfig.method}'"
        )


def text_of(tokens: Sequence[int], piece: Callable[[int], bytes]) -> tuple[str, npt.NDArray[np.int64]]:
    """The text of tokens, and for each where it ends there, in characters. A character that several tokens make up
    belongs to the last of them; bytes that are no character are left out. piece: the bytes of a token."""
    known: dict[int, bytes] = {}
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    parts, ends, length = [], [], 0
    for token in tokens:
        if token not in known:
            known[token] = piece(token)
        parts.append(decoder.decode(known[token]))
        length += len(parts[-1])
        ends.append(length)
    return "".join(parts), np.array(ends, dtype=np.int64)


def smooth(weights: Weights, kernel: int = SOURCE_KERNEL) -> npt.NDArray[np.float64]:
    """The mean over the positions around each, with true counts at the ends."""
    ones = np.ones(kernel)
    around: npt.NDArray[np.float64] = np.convolve(weights, ones, "same") / np.convolve(
        np.ones(len(weights)), ones, "same"
    )
    return around


def passages(weights: Weights, text: str, ends: npt.NDArray[np.int64], n: int) -> tuple[Source, ...]:
    """The n passages that were looked at most, by weight; fewer when what comes next was looked at far less.

    weights: of the positions that may be a source; ends: where the tokens end in the text, see text_of. A passage is
    the sentence, or the line, around a position; neighbours become one.
    """
    if len(weights) <= max(RECALL_SINKS, SOURCE_KERNEL):
        return ()
    left = weights.copy()
    left[:RECALL_SINKS] = 0.0  # every head looks at the first positions when it has nothing to look for
    left[np.diff(ends[: len(left)], prepend=0) == 0] = 0.0  # control tokens have no text
    around = smooth(left)
    least = around.max() * SOURCE_SHARE
    found: list[Source] = []
    while len(found) < n and (weight := float(around.max())) > max(least, 0.0):
        near = max(0, int(around.argmax()) - SOURCE_KERNEL // 2)
        middle = near + int(left[near : near + SOURCE_KERNEL].argmax())
        start, end = sentence(text, int(ends[middle - 1]), int(ends[middle]))
        first = min(middle, int(np.searchsorted(ends, start, side="right")))
        last = max(middle + 1, min(int(np.searchsorted(ends, end)) + 1, len(weights)))
        left[first:last] = 0.0
        around = smooth(left)
        if text[start:end].strip():
            found.append(Source(start, end, text[start:end], (first, last), weight))
    return tuple(sorted(_joined(found, text), key=lambda one: (-one.weight, one.start)))


def sentence(text: str, first: int, last: int) -> tuple[int, int]:
    """The sentences, or lines, around the characters [first, last), without the space around them; of what goes on for
    long, whole words."""
    low, high = max(0, first - SOURCE_CHARS), min(len(text), last + SOURCE_CHARS)
    before = [match.end() for match in _END.finditer(text, low, first)]
    after = _END.search(text, max(first, last - 1), min(high + 1, len(text)))
    start = before[-1] if before else low if low == 0 else _word(text, low, first)
    end = after.end() if after else high if high == len(text) else _word(text, high, last)
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _word(text: str, at: int, towards: int) -> int:
    """The next place from `at` on, on the way to `towards`, that is between two words."""
    step = 1 if towards > at else -1
    for place in range(at, towards, step):
        if text[place].isspace():
            return place
    return at


def _joined(found: Sequence[Source], text: str) -> list[Source]:
    """Passages in the order of the text, those with nothing but space between them made one."""
    joined: list[Source] = []
    for one in sorted(found, key=lambda one: one.start):
        if joined and not text[joined[-1].end : one.start].strip():
            before = joined.pop()
            end = max(before.end, one.end)
            one = Source(
                before.start,
                end,
                text[before.start : end],
                (before.positions[0], max(before.positions[1], one.positions[1])),
                max(before.weight, one.weight),
            )
        joined.append(one)
    return joined
