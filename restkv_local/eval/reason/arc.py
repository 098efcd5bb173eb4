"""AI2 Reasoning Challenge (Clark et al., 2018): questions of science with a few options."""

from __future__ import annotations

import re

from ..files import Row
from .common import Problem, Worked, first_answer

MAX_TOKENS = 64
_INTRO = "Answer the question with the letter of the right option."
_SAID = re.compile(r"(?i:answer|option)(?i:\s+is)?\s*:?\s*\(?([A-E1-5])\b")
# Alone on its line, or marked as in a list: "A" also begins sentences.
_LETTER = re.compile(r"(?:^|[\s(])([A-E1-5])(?:[.):,]|[ \t]*$)", re.MULTILINE)


def problem(row: Row) -> Problem:
    """A line {"question": {"stem", "choices": [{"label", "text"}]}, "answerKey"} of the authors' files."""
    inner = row.inner("question", row.get("question"))
    choices = [(choice.text("label"), choice.text("text")) for choice in inner.rows("choices", least=2)]
    right = row.text("answerKey").strip()
    if right not in [label for label, _ in choices]:
        row.fail(f"'answerKey' is '{right[:40]}', which no choice has as its label")
    options = "\n".join(f"{label}. {text}" for label, text in choices)
    return Problem(row.number, f"{inner.text('stem').strip()}\n{options}", f"The answer is {right}.", right)


def letter_of(answer: str) -> str | None:
    """The label that an answer chooses: after "the answer is", otherwise the first one that is marked or alone in
    its line."""
    text = first_answer(answer)
    found = _SAID.search(text) or _LETTER.search(text)
    return found[1] if found else None


def same_letter(answer: str, right: str) -> bool:
    """Whether the chosen label is the right one."""
    return letter_of(answer) == right


EASY = Worked("arc_easy", ("ARC-Easy-Test.jsonl", "arc_easy.jsonl"), ("ARC-Easy-Train.jsonl", "arc_easy_train.jsonl"),
              _INTRO, problem, same_letter, MAX_TOKENS)  # fmt: skip
CHALLENGE = Worked("arc_challenge", ("ARC-Challenge-Test.jsonl", "arc_challenge.jsonl"),
                   ("ARC-Challenge-Train.jsonl", "arc_challenge_train.jsonl"),
                   _INTRO, problem, same_letter, MAX_TOKENS)  # fmt: skip
