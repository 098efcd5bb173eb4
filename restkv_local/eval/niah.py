"""Needles in a haystack: a fact in a long text, and a question about it.

One document holds a needle of every kind, each at another depth (a Latin square: over `depths` documents, every kind
has been at every depth), so that one reading serves several questions where that is exact.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from ..bench.prose import sentences
from ..errors import ConfigError
from .sample import CountTokens, Sample

# The sentence of the pass key task of Mohtashami and Jaggi (2023), in prose of our own.
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key?"
# The answer begins with it, so that only the key is measured, and not the style of an answer (a small model in a long
# text gives 7 nats to whether a number follows, and 1 to which).
STEM = "The pass key is "

KINDS = ("passkey", "sentence", "paraphrase", "several")
DEPTHS = 4
_INTRODUCTION = "Read this text. A question about it follows.\n\n"
_ANSWER_TOKENS = 24

_CITIES = "Lisbon Oslo Prague Vienna Dublin Athens Naples Geneva Krakow Seville Antwerp Riga".split()
_PASTIMES = (
    "feed the swans by the fountain; ride the yellow tram uphill; eat fried fish on the pier; hear the organ at noon; "
    "row to the lighthouse; buy plums from the monks; climb the bell stairs; drink cocoa under the arcade"
).split("; ")
# Needle, question and the stem of the answer share no word with each other; the answer stands in the needle only.
_PARAPHRASES = (
    ("Agatha, a physician, lives beside Lake {name}.", "Near which water did that female doctor settle?", "It was "),
    ("Old Rupert sleeps inside Hotel {name} every weekend.", "Where does an elderly man spend his nights?", "At "),
    ("Our cook adores cheese made by {name}.", "Whose dairy product pleases the chef most?", "That of "),
    ("Ivan purchased his violin from {name}.", "Who sold a string instrument to the musician?", "The seller was "),
    ("Clara married {name} last spring.", "Who is the bride's husband?", "He is "),
    ("Father named our puppy {name}.", "What do they call the young dog?", "They call it "),
)
_NAMES = "Belmont Carver Delmar Fenwick Garrick Hadley Langdon Marlow Norwood Prescott Radcliff Sutton Wexford".split()
_COLOURS = "red green blue white black yellow brown orange".split()


@dataclass(frozen=True)
class _Fact:
    """needles: sentences, one or several; answer: the reference."""

    needles: tuple[str, ...]
    question: str
    stem: str
    answer: str


class Niah:
    """The task. kinds: of needles; depths: places in the text, the middles of so many equal parts."""

    name = "niah"

    def __init__(self, kinds: Sequence[str] = KINDS, depths: int = DEPTHS) -> None:
        for kind in kinds:
            if kind not in KINDS:
                raise ConfigError(f"'{kind}' is not a kind of needle; known are {', '.join(KINDS)}")
        if depths < 1:
            raise ConfigError(f"depths must be at least 1; got {depths}")
        self.kinds, self.depths = tuple(kinds), depths

    @property
    def cells(self) -> int:
        """Kinds times depths."""
        return len(self.kinds) * self.depths

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """At most n samples, document by document; see Task."""
        found: list[Sample] = []
        for number in range(-(-n // len(self.kinds))):
            found += self._document(count_tokens, length, number, seed)
        return found[:n]

    def score(self, sample: Sample, answer: str) -> float:
        """1 when the answer holds the reference, letters' case aside; for several needles, the share that it holds."""
        if sample.labels["kind"] == "several":
            wanted = re.findall(r"\d+", sample.references[0])
            given = set(re.findall(r"\d+", answer))
            return sum(number in given for number in wanted) / len(wanted)
        return float(any(_plain(reference) in _plain(answer) for reference in sample.references))

    def _document(self, count_tokens: CountTokens, length: int, number: int, seed: int) -> list[Sample]:
        rng = random.Random(f"niah {seed} {number}")
        facts = {kind: _fact(kind, rng) for kind in KINDS}  # all kinds, so that a text does not hang on the choice
        depth_of = {kind: (number + i) % self.depths for i, kind in enumerate(self.kinds)}
        fractions = {kind: (depth + 0.5) / self.depths for kind, depth in depth_of.items()}
        text = list(islice(sentences(rng.randrange(2**32)), max(1, length)))  # a sentence is more than a token

        def context(n: int) -> str:
            placed: list[tuple[float, int, str]] = []
            for order, kind in enumerate(self.kinds):
                needles = facts[kind].needles
                if kind == "several":
                    places = [(i + 0.5) / len(needles) for i in range(len(needles))]
                else:
                    places = [fractions[kind]]
                placed += [(place, order, needle) for place, needle in zip(places, needles, strict=True)]
            parts = text[:n]
            for place, _, needle in sorted(placed, reverse=True):
                parts.insert(round(place * n), needle)
            return f"{_INTRODUCTION}{' '.join(parts)}\n\n"

        longest = max((facts[kind].question + facts[kind].stem for kind in self.kinds), key=count_tokens)

        def fits(n: int) -> bool:
            return count_tokens(context(n) + longest) <= length

        low, high = self.depths, max(1, length)
        if not fits(low):
            raise ConfigError(f"{length} tokens have no room for {self.depths} depths; choose longer --contexts")
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        document = context(low)
        return [
            Sample(
                id=f"{kind}-{number}",
                context=document,
                question=facts[kind].question,
                references=(facts[kind].answer,),
                max_tokens=_ANSWER_TOKENS,
                answer_prefix=facts[kind].stem,
                labels={"kind": kind, "depth": "spread" if kind == "several" else fractions[kind]},
            )
            for kind in self.kinds
        ]


def _fact(kind: str, rng: random.Random) -> _Fact:
    if kind == "passkey":
        key = str(rng.randrange(10000, 100000))
        return _Fact((NEEDLE.format(key=key),), QUESTION, STEM, key)
    if kind == "sentence":
        city, pastime = rng.choice(_CITIES), rng.choice(_PASTIMES)
        stem = f"The best thing to do in {city} is to "
        return _Fact((f"{stem}{pastime}.",), f"What is the best thing to do in {city}?", stem, pastime)
    if kind == "paraphrase":
        needle, question, stem = rng.choice(_PARAPHRASES)
        name = rng.choice(_NAMES)
        return _Fact((needle.format(name=name),), question, stem, name)
    colours = rng.sample(_COLOURS, 3)
    numbers = [str(number) for number in rng.sample(range(100, 1000), 3)]
    needles = tuple(f"The {colour} box holds {number} coins." for colour, number in zip(colours, numbers, strict=True))
    listed = f"{colours[0]}, the {colours[1]} and the {colours[2]} box"
    answer = f"{numbers[0]}, {numbers[1]} and {numbers[2]}"
    return _Fact(needles, f"How many coins do the {listed} hold?", f"The {listed} hold ", answer)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
