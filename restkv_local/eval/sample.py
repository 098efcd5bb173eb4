"""One question to a model, and the family of questions it belongs to: what every task of `restkv-eval` is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

CountTokens = Callable[[str], int]
"""Tokens of a text under the model's own tokenizer, special tokens read as plain text."""


@dataclass(frozen=True)
class Sample:
    """A document and a question about it.

    id: unique within the task and its settings; a resumed run skips what it has by it.
    context, question: the message is context + question, exactly so, white space included. The question is its end and
    guides a guided prefill; instructions that come first belong to the context.
    answer_prefix: the answer begins with it, given to the model and no part of what is scored.
    references: correct answers; what having several means is the scorer's matter.
    max_tokens: most tokens of an answer. chat: rendered by the model's chat template, otherwise plain text.
    labels: what the report groups by, such as {"length": 4096, "depth": 0.25, "needles": 1}.
    """

    id: str
    context: str
    question: str
    references: tuple[str, ...]
    max_tokens: int
    answer_prefix: str = ""
    chat: bool = True
    labels: Mapping[str, str | int | float] = field(default_factory=dict)


class Task(Protocol):
    """A family of samples with its score."""

    @property
    def name(self) -> str:
        """As the command line and the results name it."""

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """At most `n` samples whose rendered message has about, and never more than, `length` tokens; the same seed
        gives the same ones. Tasks read from a file take their documents cut in the middle to `length`.

        Raises ConfigError when the length has no room for the task, or a file is missing or malformed (line number).
        """

    def score(self, sample: Sample, answer: str) -> float:
        """0 (wrong) to 1 (right), by the task's official measure."""
