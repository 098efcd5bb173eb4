"""RULER (Hsieh et al., 2024): 13 synthetic tasks of any length, generated with the model's own tokenizer.

The structure of prompts, the answer prefixes, counts and lengths of answers, and the scores are RULER's
(github.com/NVIDIA/RULER, scripts/synthetic.yaml and scripts/data/synthetic); the wording around needles and lists and
the words are our own, so scores compare methods here and not with published tables.
"""

from __future__ import annotations

from pathlib import Path

from ..about import About
from ..sample import Task
from . import niah, qa, tracking, words
from .text import Essay

_NIAH = (
    niah.Niah("niah_single_1", "noise"),
    niah.Niah("niah_single_2", "essay"),
    niah.Niah("niah_single_3", "essay", values="uuids"),
    niah.Niah("niah_multikey_1", "essay", n_keys=4),
    niah.Niah("niah_multikey_2", "needles"),
    niah.Niah("niah_multikey_3", "needles", keys="uuids", values="uuids"),
    niah.Niah("niah_multivalue", "essay", n_values=4),
    niah.Niah("niah_multiquery", "essay", n_queries=4),
)
_HAYSTACKS = {
    "noise": "a repeated line",
    "essay": "an essay",
    "needles": "needles with other keys",
}
ESSAY_FILE = "essay.txt"
SQUAD_FILES = ("squad.json",)
HOTPOTQA_FILES = ("hotpotqa.json",)


def _about(task: niah.Niah) -> About:
    n_keys = max(task.n_keys, task.n_queries)
    many = "" if task.n_values == 1 else f" of {task.n_values} each"
    asks = (
        f"{n_keys} key{'s' if n_keys > 1 else ''} ({task.keys}) with values ({task.values}){many} in "
        f"{_HAYSTACKS[task.haystack]}; asks for {task.n_queries}"
    )
    data = "generated"
    if task.haystack == "essay":
        data = f"generated in `{ESSAY_FILE}`, or in built-in prose without it"
    return About(task.name, asks, "string match, all", data, niah.MAX_TOKENS)


ABOUT: tuple[About, ...] = (
    *map(_about, _NIAH),
    About("vt", "which variables hold a value, along a chain of assignments in a repeated line", "string match, all",
          "generated", tracking.MAX_TOKENS),
    About("cwe", "the 10 most common words of a numbered list", "string match, all", "generated", words.CWE_TOKENS),
    About("fwe", "the 3 most frequent words of a coded text", "string match, all", "generated", words.FWE_TOKENS),
    About("qa_1", "a question of SQuAD among other paragraphs", "string match, part",
          "`squad.json`, the official JSON of SQuAD 1.1 or 2.0", qa.MAX_TOKENS),
    About("qa_2", "a question of HotpotQA among other documents", "string match, part",
          "`hotpotqa.json`, the official JSON of HotpotQA (distractor)", qa.MAX_TOKENS),
)  # fmt: skip
NAMES: tuple[str, ...] = tuple(about.name for about in ABOUT)


def tasks(data: Path | None = None, essay: Path | None = None) -> list[Task]:
    """All 13 tasks in the order of NAMES. Files are read when samples are asked for.

    data: folder with squad.json and hotpotqa.json, and essay.txt if there is one.
    essay: another text file to hide needles in.
    """
    if essay is None and data is not None and (data / ESSAY_FILE).is_file():
        essay = data / ESSAY_FILE
    prose = Essay(essay)
    made: list[Task] = [
        niah.Niah(t.name, t.haystack, t.keys, t.values, t.n_keys, t.n_values, t.n_queries, prose) for t in _NIAH
    ]
    return [
        *made,
        tracking.VariableTracking(),
        words.CommonWords(),
        words.FrequentWords(),
        qa.QuestionAnswering("qa_1", SQUAD_FILES, qa.read_squad, data),
        qa.QuestionAnswering("qa_2", HOTPOTQA_FILES, qa.read_hotpotqa, data),
    ]
