"""What needles and variables are hidden in: repeated noise, a local essay, or built-in prose."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ...bench.prose import sentences
from ..files import read_text

# Of the pass key task of Mohtashami and Jaggi (2023), as RULER repeats it.
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
# RULER lets a needle stand at one of so many depths, evenly from 0 to 100 per cent, in whole per cents.
_DEPTHS = 40
DEPTHS = tuple(round(100 * i / (_DEPTHS - 1)) for i in range(_DEPTHS))


@dataclass
class Essay:
    """Sentences of prose without end: of a local file, repeated where it ends, or built in.

    label: which of them, for the report.
    """

    path: Path | None
    _known: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return "built-in prose" if self.path is None else "essay file"

    def take(self, n: int) -> list[str]:
        """The first `n` sentences. Raises ConfigError when the file cannot be read."""
        if self.path is None:
            if len(self._known) < n:
                self._known = list(islice(sentences(0), 2 * n))
            return self._known[:n]
        if not self._known:
            text = " ".join(read_text(self.path).split())
            self._known = re.split(r"(?<=[.!?])\s+", text)
        return (self._known * (n // len(self._known) + 1))[:n]


def scatter(rng: random.Random, sentences: list[str], needles: list[str]) -> str:
    """Sentences with each needle at a depth of its own, as one paragraph."""
    places = sorted(len(sentences) * depth // 100 for depth in rng.sample(DEPTHS, len(needles)))
    parts: list[str] = []
    last = 0
    for place, needle in zip(places, needles, strict=True):
        parts += [*sentences[last:place], needle]
        last = place
    return " ".join([*parts, *sentences[last:]])


def insert(rng: random.Random, lines: list[str], needles: list[str]) -> list[str]:
    """Lines with the needles before so many different ones of them, in the order of the needles."""
    places = sorted(rng.sample(range(len(lines)), len(needles)))
    parts: list[str] = []
    last = 0
    for place, needle in zip(places, needles, strict=True):
        parts += [*lines[last:place], needle]
        last = place
    return [*parts, *lines[last:]]
