"""Word problems: GSM8K (Cobbe et al., 2021) and MultiArith (Roy and Roth, 2015)."""

from __future__ import annotations

import re

from ..files import Row
from .common import Problem, Worked, same_number

MAX_TOKENS = 256
_INTRO = 'Solve the problem step by step. End with a line "The answer is" and the number.'


def gsm8k_problem(row: Row) -> Problem:
    """A line {"question", "answer"}; the answer's last line is "#### 42". Notes such as <<1+2=3>> are for calculators
    and left out."""
    steps, mark, right = row.text("answer").rpartition("####")
    right = right.strip().replace(",", "")
    if not mark or not _is_number(right):
        row.fail("'answer' must end with '####' and a number")
    worked = re.sub(r"<<[^<>]*>>", "", steps).strip()
    return Problem(row.number, row.text("question").strip(), f"{worked}\nThe answer is {right}.", right)


def multiarith_problem(row: Row) -> Problem:
    """{"sQuestion", "lSolutions": [8.0]} of the authors' file, or {"question", "final_ans": "8"} of its copies."""
    if row.has("sQuestion"):
        question, right = row.text("sQuestion"), row.scalars("lSolutions")[0]
    else:
        question, right = row.text("question"), row.number_text("final_ans")
    right = right.strip().replace(",", "").removesuffix(".0")
    if not _is_number(right):
        row.fail(f"the solution '{right[:40]}' is no number")
    return Problem(row.number, question.strip(), f"The answer is {right}.", right)


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False


GSM8K = Worked(
    "gsm8k", ("gsm8k.jsonl", "gsm8k_test.jsonl"), ("gsm8k_train.jsonl",), _INTRO, gsm8k_problem, same_number, MAX_TOKENS
)
MULTIARITH = Worked(
    "multiarith",
    ("MultiArith.json", "multiarith.json", "multiarith.jsonl"),
    ("multiarith_train.json", "multiarith_train.jsonl"),
    _INTRO,
    multiarith_problem,
    same_number,
    MAX_TOKENS,
)
