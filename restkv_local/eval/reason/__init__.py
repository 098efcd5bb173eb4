"""Reasoning: word problems, questions of science and small programs, from local files in their official formats."""

from __future__ import annotations

from pathlib import Path

from ..about import About
from ..sample import Task
from . import arc, humaneval, sums

ABOUT: tuple[About, ...] = (
    About("gsm8k", "a word problem of school mathematics", "last number",
          "`gsm8k.jsonl`; worked examples from `gsm8k_train.jsonl`", sums.MAX_TOKENS),
    About("multiarith", "a word problem of two or more steps", "last number",
          "`MultiArith.json`, a list, or `multiarith.jsonl`", sums.MAX_TOKENS),
    About("arc_easy", "a question of science with options", "chosen option",
          "`ARC-Easy-Test.jsonl`; worked examples from `ARC-Easy-Train.jsonl`", arc.MAX_TOKENS),
    About("arc_challenge", "the same, where simple look-ups fail", "chosen option",
          "`ARC-Challenge-Test.jsonl`; worked examples from `ARC-Challenge-Train.jsonl`", arc.MAX_TOKENS),
    About("humaneval", "the body of a Python function; run only when allowed", "the tests pass",
          "`HumanEval.jsonl`", humaneval.MAX_TOKENS),
)  # fmt: skip
NAMES: tuple[str, ...] = tuple(about.name for about in ABOUT)


def tasks(data: Path | None = None, run_code: bool = False) -> list[Task]:
    """All tasks in the order of NAMES. Files are read when samples are asked for.

    data: folder with the local files. run_code: whether HumanEval may run what a model writes (reason/sandbox.py).
    """
    worked = (sums.GSM8K, sums.MULTIARITH, arc.EASY, arc.CHALLENGE)
    return [*(task.at(data) for task in worked), humaneval.HumanEval(data, run_code)]
