"""What the reasoning tasks share: worked examples, and how an answer is taken out of a text."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import ConfigError
from ..files import Row, choose, find, read_objects
from ..fit import size
from ..sample import CountTokens, Sample

# Worked examples before a question, as the usual figures of GSM8K and ARC have them (8 and 25; 8 keeps them alike).
SHOTS = 8
_NUMBER = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|-?\d+(?:\.\d+)?|-?\.\d+")
_SAID = re.compile(r"answer\s+is\s*:?\s*\$?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Problem:
    """question: as it is put. worked: the answer as an example shows it. right: what is compared."""

    number: int
    question: str
    worked: str
    right: str


@dataclass(frozen=True)
class Worked:
    """A task whose questions follow worked examples.

    files: of the questions. training: of the worked examples; without that file there are none.
    Examples go in while they fit the length, at most SHOTS; label "shots" says how many.
    """

    name: str
    files: tuple[str, ...]
    training: tuple[str, ...]
    intro: str
    read: Callable[[Row], Problem]
    equal: Callable[[str, str], bool]
    max_tokens: int
    data: Path | None = None

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """See Task."""
        path = find(self.data, self.files, f"reason {self.name}")
        problems = choose(map(self.read, read_objects(path)), n, f"{self.name}/{seed}")
        examples = self._examples(seed)
        return [self._fit(count_tokens, length, problem, examples) for problem in problems]

    def score(self, sample: Sample, answer: str) -> float:
        """1 when the answer that is taken out of the text is the right one."""
        return float(self.equal(answer, sample.references[0]))

    def _examples(self, seed: int) -> list[Problem]:
        if self.data is None:
            return []
        for name in self.training:
            if (self.data / name).is_file():
                found = choose(map(self.read, read_objects(self.data / name)), SHOTS, f"{self.name}/{seed}/examples")
                random.Random(f"{self.name}/{seed}/order").shuffle(found)
                return found
        return []

    def _fit(self, count: CountTokens, length: int, problem: Problem, examples: list[Problem]) -> Sample:
        # A file of both would give the answer away.
        others = [example for example in examples if example.question != problem.question]
        for shots in range(len(others), -1, -1):
            sample = self._sample(problem, others[:shots])
            needed = size(count, sample)
            if needed <= length:
                return sample
        raise ConfigError(f"reason {self.name} needs at least {needed} tokens; {length} are given")

    def _sample(self, problem: Problem, examples: list[Problem]) -> Sample:
        shown = "".join(f"Question: {one.question}\nAnswer: {one.worked}\n\n" for one in examples)
        return Sample(
            id=f"problem-{problem.number}",
            context=f"{self.intro}\n\n{shown}",
            question=f"Question: {problem.question}",
            answer_prefix="Answer: ",
            references=(problem.right,),
            max_tokens=self.max_tokens,
            labels={"shots": len(examples)},
        )

    def at(self, data: Path | None) -> Worked:
        """The same task with its files in a folder."""
        return replace(self, data=data)


def first_answer(text: str) -> str:
    """What a model says before it goes on with a question of its own."""
    return re.split(r"\n\s*(?:Question|Q):", text, maxsplit=1)[0]


def number_of(text: str) -> str | None:
    """The number that a worked answer ends in: after the last "the answer is" or "####", otherwise the last number.
    Without commas; None when there is no number."""
    text = first_answer(text)
    said = [match.end() for match in _SAID.finditer(text)]
    marked = text.rfind("####")
    for start in sorted([*said, *([marked + 4] if marked >= 0 else [])], reverse=True):
        found = _NUMBER.search(text, start)
        if found:
            return found[0].replace(",", "")
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def same_number(answer: str, right: str) -> bool:
    """Whether the number of an answer equals the right one: 18, 18.0 and 18.00 are the same."""
    given = number_of(answer)
    try:
        return given is not None and float(given) == float(right.replace(",", ""))
    except ValueError:
        return False
