"""InfiniteBench (Zhang et al., 2024): 12 tasks of 100K tokens and more. Five synthetic ones are generated to any
length; seven are read from local files in the official format and cut in the middle.

Lengths of answers and measures are the official ones (github.com/OpenBMB/InfiniteBench, src/eval_utils.py and
src/compute_scores.py); the wording of the prompts is our own, so scores compare methods here and not with published
tables. Each task keeps its official name in the code; the paper's name is in the description.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..about import About
from ..sample import Task
from .generated import MAX_TOKENS
from .generated import TASKS as GENERATED
from .local import TASKS as LOCAL

_TEXTS: dict[str, tuple[str, str]] = {
    "passkey": ("Retrieve.PassKey: five digits among repeated lines", "first number"),
    "number_string": ("Retrieve.Number: ten digits, some doubled, among repeated lines", "first number"),
    "kv_retrieval": ("Retrieve.KV: the value of a key of a JSON object", "any word"),
    "math_find": ("Math.Find: the largest, a smallest or the median number of a list", "first number"),
    "code_run": ("Code.Run: the value of a call among functions that call each other", "last word"),
    "longbook_sum_eng": ("En.Sum: a summary of a book", "rougeLsum"),
    "longbook_choice_eng": ("En.MC: a question about a book with four options", "choice"),
    "longbook_qa_eng": ("En.QA: a question about a book", "F1 of words"),
    "longbook_qa_chn": ("Zh.QA: a question about a Chinese book", "F1 of characters"),
    "longdialogue_qa_eng": ("En.Dia: the masked name in a script", "any word"),
    "math_calc": ("Math.Calc: the values after each step of a long sum", "leading numbers"),
    "code_debug": ("Code.Debug: which of four functions is broken", "choice"),
}
ABOUT: tuple[About, ...] = (
    *(About(task.name, *_TEXTS[task.name], "generated", MAX_TOKENS[task.name]) for task in GENERATED),
    *(About(task.name, *_TEXTS[task.name], f"`{task.name}.jsonl`", task.max_tokens) for task in LOCAL),
)
NAMES: tuple[str, ...] = tuple(about.name for about in ABOUT)


def tasks(data: Path | None = None) -> list[Task]:
    """All 12 tasks in the order of NAMES. data: folder with the local files, read when samples are asked for."""
    return [*GENERATED, *(replace(task, data=data) for task in LOCAL)]
