"""Variable tracking (vt): a chain of assignments is hidden in noise; which variables hold the value?"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..fit import Filler
from ..metrics import string_match_all
from ..sample import CountTokens, Sample
from .text import NOISE, insert

# Of RULER's configuration: one chain of four hops, so five variables of five letters; three letters in the example.
MAX_TOKENS = 30
HOPS = 4
LETTERS = 5
EXAMPLE_LETTERS = 3
# Lines of noise in the worked example, about as long as RULER's (it fills 500 tokens less the answer).
EXAMPLE_LINES = 10


@dataclass(frozen=True)
class VariableTracking:
    """RULER's vt, with one worked example before the question as there."""

    name: str = "vt"

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """See Task."""
        filler = Filler(self.name, count_tokens, length, least=HOPS + 1)
        return [filler.fill(partial(self._sample, seed, index)) for index in range(n)]

    def score(self, sample: Sample, answer: str) -> float:
        """The part of the variables that the answer names."""
        return string_match_all(answer, sample.references)

    def _sample(self, seed: int, index: int, n_lines: int) -> Sample:
        rng = random.Random(f"{self.name}/{seed}/{index}")
        names, value, chain = _chain(rng, EXAMPLE_LETTERS)
        example = f"{_task(rng, chain, EXAMPLE_LINES)}{_question(value)} {_prefix(value)}{' '.join(names)}\n\n"
        names, value, chain = _chain(rng, LETTERS)
        return Sample(
            id=str(index),
            context=f"{example}{_task(rng, chain, n_lines)}",
            question=_question(value),
            answer_prefix=_prefix(value),
            references=tuple(names),
            max_tokens=MAX_TOKENS,
            labels={"haystack": "noise", "needles": len(names)},
        )


def _chain(rng: random.Random, letters: int) -> tuple[list[str], str, list[str]]:
    """Variables, the value that they all hold, and the lines that say so."""
    found: dict[str, None] = {}
    while len(found) < HOPS + 1:
        found["".join(rng.choice(string.ascii_uppercase) for _ in range(letters))] = None
    names = list(found)
    value = str(rng.randrange(10000, 100000))
    lines = [f"VAR {names[0]} = {value}"]
    lines += [f"VAR {new} = VAR {old}" for old, new in zip(names, names[1:], strict=False)]
    return names, value, lines


def _task(rng: random.Random, chain: list[str], n_lines: int) -> str:
    text = "\n".join(insert(rng, [NOISE] * n_lines, chain))
    return f"A chain of variable assignments is hidden in the text below. Track it and keep it in mind.\n\n{text}\n"


def _question(value: str) -> str:
    return f"Question: Find all variables that have the value {value} in the text above."


def _prefix(value: str) -> str:
    return (
        f"Answer: By the chain of variable assignments in the text above, {HOPS + 1} variables have the value {value}; "
        "they are: "
    )
