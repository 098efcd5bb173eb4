"""What a kind of question is made of: pieces that are planted in a text, and questions about them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

# Things that codes and lists belong to; a question may ask for the codes of 32 of them.
THINGS = (
    "strongbox lighthouse greenhouse windmill ferry bakery chapel harbour library garage stable tannery foundry "
    "sawmill brewery quarry armoury cellar attic barracks lodge pantry granary workshop gatehouse observatory orchard "
    "vineyard dairy kennel bathhouse theatre monastery customs-house pumping-station boathouse watchtower  schoolhouse "
    "forge inn mint dovecote icehouse smokehouse ballroom laundry nursery armchair wardrobe cupboard suitcase toolbox "
    "locker safe vault trunk chest drawer cabinet desk piano tractor caravan sledge"
).split()


@dataclass(frozen=True)
class Question:
    """A question about what was planted.

    kind: as the report splits by it. stem: the answer begins with it, given to the model. answer: the right one behind
    it; parts: what of it must be right, in this order. targets: the pieces of the text that hold the answer.
    """

    kind: str
    text: str
    stem: str
    answer: str
    targets: tuple[str, ...]
    parts: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """The parts, or the whole answer as one."""
        return self.parts or (self.answer,)


@dataclass(frozen=True)
class Material:
    """planted: groups of pieces; those of a group keep their order in the text, the groups mix. Every piece is there
    once. questions: in no order."""

    planted: tuple[tuple[str, ...], ...]
    questions: tuple[Question, ...]


Make = Callable[[random.Random, int], Material]
"""The material for n questions; raises ConfigError where there is none for so many."""


def codes(rng: random.Random, n: int, digits: int = 5) -> list[str]:
    """n different numbers of so many digits."""
    return [str(number) for number in rng.sample(range(10 ** (digits - 1), 10**digits), n)]
