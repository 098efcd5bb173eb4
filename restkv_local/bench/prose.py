"""English-looking prose of any length from a seed, for benchmarks and tests. Nothing is downloaded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

_ADJECTIVES = (
    "old quiet narrow bright heavy distant careful broken silver patient northern hollow gentle sudden ancient "
    "crowded empty faithful golden humble iron lonely modest nervous open painted rough sleepy tall uncertain"
).split()
_NOUNS = (
    "river lantern market captain garden letter mountain harbour teacher window bridge orchard winter clock village "
    "library sailor kitchen meadow engine carpenter island merchant forest railway doctor painting valley neighbour "
    "machine castle road shepherd piano storm factory museum tower stranger coat field boat school candle ladder "
    "station mirror hill notebook judge"
).split()
_VERBS = (
    "watched carried followed remembered repaired crossed painted described left found opened guarded measured "
    "visited mentioned bought forgot counted lifted studied sold hid traced answered kept questioned"
).split()
_PLACES = (
    "behind the mill; near the old station; across the frozen lake; under the stone arch; beside the church; "
    "at the edge of town; above the bakery; along the northern road; in the upper room; before the gate"
).split("; ")
_TIMES = (
    "In the morning; Later that year; After the rain; Before dawn; On the third day; During the long winter; "
    "At the end of the week; Some time afterwards; When the lamps were lit; Toward evening"
).split("; ")
_LINKS = "and but while because although until".split()


def sentences(seed: int = 0) -> Iterator[str]:
    """Sentences without end; the same seed gives the same ones on every machine."""
    rng = random.Random(seed)

    def thing() -> str:
        adjective = f"{rng.choice(_ADJECTIVES)} " if rng.random() < 0.6 else ""
        return f"the {adjective}{rng.choice(_NOUNS)}"

    def clause() -> str:
        place = f" {rng.choice(_PLACES)}" if rng.random() < 0.4 else ""
        return f"{thing()} {rng.choice(_VERBS)} {thing()}{place}"

    while True:
        kind = rng.random()
        if kind < 0.35:
            text = f"{rng.choice(_TIMES)}, {clause()}"
        elif kind < 0.75:
            text = f"{clause()} {rng.choice(_LINKS)} {clause()}"
        else:
            text = f"{clause()}, {rng.choice(_LINKS)} {rng.randint(2, 99)} of them stayed {rng.choice(_PLACES)}"
        yield f"{text[0].upper()}{text[1:]}."


def prose(n_words: int, seed: int = 0) -> str:
    """At least `n_words` words in paragraphs of eight sentences."""
    paragraphs: list[str] = []
    current: list[str] = []
    written = 0
    for sentence in sentences(seed):
        current.append(sentence)
        written += sentence.count(" ") + 1
        if len(current) == 8 or written >= n_words:
            paragraphs.append(" ".join(current))
            current = []
        if written >= n_words:
            return "\n\n".join(paragraphs)
    raise RuntimeError("unreachable: sentences() does not end")


def prose_tokens(n_tokens: int, tokenize: Callable[[bytes], list[int]], seed: int = 0) -> list[int]:
    """Exactly `n_tokens` tokens of prose under a tokenizer."""
    n_words = n_tokens
    while True:
        tokens = tokenize(prose(n_words, seed).encode())
        if len(tokens) >= n_tokens:
            return tokens[:n_tokens]
        n_words = n_words * 2 + 16
