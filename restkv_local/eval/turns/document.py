"""A text of a length with what is asked about planted in it, and its questions in the order in which they are asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...errors import ConfigError
from ..fit import most
from ..sample import CountTokens
from . import functions as code
from . import prose
from .facts import facts, lists, paraphrased
from .functions import functions
from .material import Make, Material, Question
from .strings import affixes, extremes, pairs, tracing

INTRODUCTION = "Read this text. Questions about it follow.\n\n"
# A text may end so far below its length, as a part of it.
SLACK = 0.002
# Of what comes next, how many pieces are tried for the room that is left; tokens where two pieces meet.
_TRIED = 40
_JOINT = 2


class Kind(NamedTuple):
    """make: its material; around: what stands between the planted pieces. shuffled: whether questions come in random
    order; otherwise in that of the material."""

    make: Make
    around: Callable[[random.Random], list[str]] = prose.others
    shuffled: bool = True


def mixed(rng: random.Random, n: int) -> Material:
    """Questions of all plain kinds in turn, so that each asks for something else than the one before."""
    names = list(PLAIN)
    numbers = [len(range(i, n, len(names))) for i in range(len(names))]
    made = [PLAIN[name].make(rng, number) for name, number in zip(names, numbers, strict=True)]
    queues = [rng.sample(one.questions, len(one.questions)) for one in made]
    found = [queues[number % len(names)].pop() for number in range(n)]
    questions = [
        Question(f"mixed {one.kind}", one.text, one.stem, one.answer, one.targets, one.parts) for one in found
    ]
    return Material(tuple(group for one in made for group in one.planted), tuple(questions))


PLAIN = {
    "facts": Kind(facts),
    "paraphrased": Kind(paraphrased),
    "pairs": Kind(pairs),
    "affixes": Kind(affixes),
    "tracing": Kind(tracing),
    "extremes": Kind(extremes),
    "functions": Kind(functions, code.others),
}
KINDS = {**PLAIN, "mixed": Kind(mixed, shuffled=False), "list": Kind(lists)}


@dataclass(frozen=True)
class Document:
    """id: unique among those of a seed. kind: of KINDS; a question may be of a finer one. text: with its introduction,
    up to where a question follows."""

    id: str
    kind: str
    text: str
    questions: tuple[Question, ...]


def make(kind: str, count_tokens: CountTokens, length: int, n_questions: int, number: int, seed: int) -> Document:
    """A document whose text has about, and never more than, `length` tokens. The same seed and number give the same.

    Raises ConfigError for a length that has no room for what is planted, or is longer than the prose that is there.
    """
    rng = random.Random(f"turns {kind} {seed} {number}")
    row = KINDS[kind]
    material = row.make(rng, n_questions)
    planted = _in_order(rng, material.planted)
    said = _plain(" ".join(planted))
    around = [piece for piece in row.around(rng) if _plain(piece) not in said]
    questions = rng.sample(material.questions, n_questions) if row.shuffled else material.questions

    def written(pieces: Sequence[str]) -> str:
        return f"{INTRODUCTION}{_joined(_planted(pieces, planted))}\n\n"

    sizes: dict[int, int] = {}

    def measure(n: int) -> int:
        if n not in sizes:
            sizes[n] = count_tokens(written(around[:n]))
        return sizes[n]

    guess = max(len(planted) + 1, length // 30)
    n = most(measure, length, 0, guess, len(around), SLACK)
    if n is None:
        raise ConfigError(f"kind '{kind}' needs {sizes[0]} tokens for its questions; choose longer --contexts")
    if n == len(around) and sizes[n] < length * (1 - 2 * SLACK):
        raise ConfigError(
            f"kind '{kind}' has {sizes[n]} tokens of text on this machine, and {length} are wanted; "
            f"choose shorter --contexts"
        )
    pieces = around[:n]
    left = length - sizes[n]
    for piece in around[n : n + _TRIED]:
        size = count_tokens(piece) + _JOINT
        if size <= left:
            pieces.append(piece)
            left -= size
    text = written(pieces)
    if count_tokens(text) > length:  # pieces took more together than one by one
        text = written(around[:n])
    return Document(f"{kind}-{number}", kind, text, tuple(questions))


def _in_order(rng: random.Random, groups: Sequence[tuple[str, ...]]) -> list[str]:
    """All pieces, the groups mixed, each in its own order."""
    whose = [number for number, group in enumerate(groups) for _ in group]
    rng.shuffle(whose)
    left = [iter(group) for group in groups]
    return [next(left[number]) for number in whose]


def _planted(around: Sequence[str], planted: Sequence[str]) -> list[str]:
    """The pieces in the middles of so many equal parts of a text."""
    found = list(around)
    for number in reversed(range(len(planted))):
        found.insert(round((number + 0.5) / len(planted) * len(around)), planted[number])
    return found


def _joined(pieces: Sequence[str]) -> str:
    """Sentences with a blank between them; what has lines of its own with an empty line around it."""
    parts = [pieces[0]]
    for before, piece in zip(pieces, pieces[1:], strict=False):
        parts += ["\n\n" if "\n" in before or "\n" in piece else " ", piece]
    return "".join(parts)


def _plain(text: str) -> str:
    return " ".join(text.split())
