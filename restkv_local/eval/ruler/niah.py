"""Needle in a haystack: the eight retrieval tasks of RULER."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from ..fit import Filler
from ..metrics import string_match_all
from ..sample import CountTokens, Sample
from . import vocabulary
from .text import NOISE, Essay, insert, scatter

# Of RULER's configuration.
MAX_TOKENS = 128
# The sentence that RULER hides; what is around it is in words of our own.
NEEDLE = "One of the special magic {kind} for {key} is: {value}."


@dataclass(frozen=True)
class Niah:
    """One retrieval task.

    haystack: "noise" (one line repeated), "essay" (prose) or "needles" (needles that are not asked for).
    keys, values: what they are: "words", "numbers" (7 digits) or "uuids".
    n_keys, n_values, n_queries: needles with different keys, values of each key, keys that are asked for.
    """

    name: str
    haystack: str
    keys: str = "words"
    values: str = "numbers"
    n_keys: int = 1
    n_values: int = 1
    n_queries: int = 1
    essay: Essay = field(default_factory=lambda: Essay(None), compare=False)

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """See Task."""
        n_needles = max(self.n_keys, self.n_queries) * self.n_values
        filler = Filler(self.name, count_tokens, length, least=n_needles)
        return [filler.fill(partial(self._sample, seed, index)) for index in range(n)]

    def score(self, sample: Sample, answer: str) -> float:
        """The part of the values that the answer contains."""
        return string_match_all(answer, sample.references)

    def _sample(self, seed: int, index: int, n_units: int) -> Sample:
        rng = random.Random(f"{self.name}/{seed}/{index}")
        n_keys = max(self.n_keys, self.n_queries)
        keys = _distinct(rng, self.keys, n_keys)
        values = _distinct(rng, self.values, n_keys * self.n_values)
        of = {key: values[i * self.n_values : (i + 1) * self.n_values] for i, key in enumerate(keys)}
        needles = [self._needle(key, value) for key in keys for value in of[key]]
        rng.shuffle(needles)
        asked = rng.sample(keys, self.n_queries)
        text, label = self._hide(rng, needles, n_units, set(keys))
        one = self.n_queries * self.n_values == 1
        kind = self.values[:-1] if one else self.values
        key = ", ".join(asked[:-1]) + (", and " if len(asked) > 1 else "") + asked[-1]
        return Sample(
            id=str(index),
            context=(
                f"{'A' if one else 'Some'} special magic {kind} {'stands' if one else 'stand'} somewhere in the text "
                f"below. Keep {'it' if one else 'them'} in mind, because you will be asked about the {kind} later.\n"
                f"{text}\n"
            ),
            question=f"What {'is' if one else 'are all'} the special magic {kind} for {key} given in the text above?",
            answer_prefix=f"The special magic {kind} for {key} given in the text above {'is' if one else 'are'} ",
            references=tuple(value for key in asked for value in of[key]),
            max_tokens=MAX_TOKENS,
            labels={"haystack": label, "needles": len(needles)},
        )

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.values, key=key, value=value)

    def _hide(self, rng: random.Random, needles: list[str], n_units: int, keys: set[str]) -> tuple[str, str]:
        """The text around the needles, and what the report calls it."""
        if self.haystack == "essay":
            return scatter(rng, self.essay.take(n_units), needles), self.essay.label
        if self.haystack == "noise":
            return "\n".join(insert(rng, [NOISE] * n_units, needles)), "noise"
        places = random.Random(rng.getrandbits(64))  # the lines are the same ones for every number of them
        lines: list[str] = []
        while len(lines) < n_units:
            key = _one(rng, self.keys)
            if key not in keys:
                lines.append(self._needle(key, _one(rng, self.values)))
        return "\n".join(insert(places, lines, needles)), "needles"


def _one(rng: random.Random, kind: str) -> str:
    if kind == "words":
        return vocabulary.key(rng)
    if kind == "numbers":
        return str(rng.randrange(10**6, 10**7))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _distinct(rng: random.Random, kind: str, n: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < n:
        found[_one(rng, kind)] = None
    return list(found)
