"""Aggregation: the most common words of a list (cwe), the most frequent words of a coded text (fwe)."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..fit import Filler
from ..metrics import string_match_all
from ..sample import CountTokens, Sample
from .vocabulary import COMPOUND, PLAIN

# Of RULER's configuration.
CWE_TOKENS = 120
CWE_COMMON = 10
# How often a common and another word stand in the list, and both and the number of words in the worked example; below
# 4,096 tokens (less some for the frame of a chat) RULER takes the second row.
CWE_LONG = (30, 3, 10, 3, 40)
CWE_SHORT = (6, 1, 3, 1, 20)
CWE_SHORT_BELOW = 4096 - 256
FWE_TOKENS = 50
FWE_ASKED = 3
FWE_LETTERS = 6
# Tokens of the length per word of the coded vocabulary, and the sum of 1 / k^2 (alpha is 2).
FWE_PER_WORD = 50
ZETA_2 = 1.6449340668482264


@dataclass(frozen=True)
class CommonWords:
    """RULER's cwe, with one worked example before the list as there."""

    name: str = "cwe"

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """See Task."""
        filler = Filler(self.name, count_tokens, length, least=CWE_COMMON + 1)
        ceiling = len(COMPOUND) // 2
        return [filler.fill(partial(self._sample, length, seed, index), ceiling) for index in range(n)]

    def score(self, sample: Sample, answer: str) -> float:
        """The part of the common words that the answer names."""
        return string_match_all(answer, sample.references)

    def _sample(self, length: int, seed: int, index: int, n_words: int) -> Sample:
        rng = random.Random(f"{self.name}/{seed}/{index}")
        often, seldom, example_often, example_seldom, n_example = CWE_SHORT if length < CWE_SHORT_BELOW else CWE_LONG
        text, common = _list(random.Random(rng.getrandbits(64)), n_example, example_often, example_seldom)
        example = f"{text}{_QUESTION} {_PREFIX}{_numbered(common)}\n"
        text, common = _list(rng, n_words, often, seldom)
        return Sample(
            id=str(index),
            context=f"{example}{text}",
            question=_QUESTION,
            answer_prefix=_PREFIX,
            references=tuple(common),
            max_tokens=CWE_TOKENS,
            labels={"words": "plain" if n_words <= len(PLAIN) // 2 else "compound"},
        )


_QUESTION = f"Question: What are the {CWE_COMMON} most common words of the list above?"
_PREFIX = f"Answer: The {CWE_COMMON} words that stand most often in the list are: "


def _list(rng: random.Random, n_words: int, often: int, seldom: int) -> tuple[str, list[str]]:
    """A numbered list in which the first words stand often, and these words. No other word contains one of them, so
    that an answer cannot name one by accident."""
    pool = PLAIN if n_words <= len(PLAIN) // 2 else COMPOUND
    common = rng.sample(pool, CWE_COMMON)
    drawn = rng.sample(pool, min(len(pool), 2 * n_words + 100))
    rest = [word for word in drawn if not any(other in word for other in common)]
    words = common * often + rest[: n_words - CWE_COMMON] * seldom
    rng.shuffle(words)
    intro = "Here is a numbered list of words. Some of them stand in it more often than others; keep those in mind."
    return f"{intro}\n{_numbered(words)}\n", common


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


@dataclass(frozen=True)
class FrequentWords:
    """RULER's fwe: words of random letters whose frequencies follow a zeta distribution; the most frequent one is
    written as dots and does not count."""

    name: str = "fwe"

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """See Task."""
        filler = Filler(self.name, count_tokens, length, least=100)
        return [filler.fill(partial(self._sample, length, seed, index)) for index in range(n)]

    def score(self, sample: Sample, answer: str) -> float:
        """The part of the three words that the answer names."""
        return string_match_all(answer, sample.references)

    def _sample(self, length: int, seed: int, index: int, n_words: int) -> Sample:
        rng = random.Random(f"{self.name}/{seed}/{index}")
        found: dict[str, None] = {"...": None}
        while len(found) < max(length // FWE_PER_WORD, 2 * FWE_ASKED):
            found["".join(rng.choice(string.ascii_lowercase) for _ in range(FWE_LETTERS))] = None
        vocabulary = list(found)
        text = [
            word for rank, word in enumerate(vocabulary, 1) for _ in range(int(n_words / (rank * rank * ZETA_2)))
        ]
        rng.shuffle(text)
        return Sample(
            id=str(index),
            context=(
                "Read the coded text below and track how often each coded word stands in it. Find the three coded "
                f"words that stand in it most often.\n{' '.join(text)}\n"
            ),
            question=(
                "Question: Without any explanation, and leaving out the dots '...': which three words stand most often "
                "in the coded text above?"
            ),
            answer_prefix="Answer: In the coded text above, the three words that stand most often are: ",
            references=tuple(vocabulary[1 : 1 + FWE_ASKED]),
            max_tokens=FWE_TOKENS,
        )
