"""InfiniteBench's tasks about books, scripts, code and long sums, from local files in the official format.

A line has `context`, `input`, `answer` (a list, or one value) and `options` (a list). The parts of the prompts stand in
the official order (src/prompt.py of OpenBMB/InfiniteBench), in words of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import metrics
from ..files import Row, choose, find, read_jsonl
from ..fit import cut_middle
from ..rouge import rouge_l_sum
from ..sample import CountTokens, Sample
from ..templates import parse
from . import scoring

Measure = Callable[[str, Sequence[str]], float]
_FIELDS = frozenset({"input", *scoring.LETTERS})
_OPTIONS = "A. {A}\nB. {B}\nC. {C}\nD. {D}"
# Options that are shown; a file may have more.
_N_OPTIONS = len(scoring.LETTERS)


@dataclass(frozen=True)
class Local:
    """One task of a local file. options: the answer is one of four, and the references are its text and its letter."""

    name: str
    prompt: str
    max_tokens: int
    measure: Measure
    data: Path | None = None
    answer_prefix: str = ""
    options: bool = False

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """See Task. Which lines of the file is chosen by the seed; label "cut" says whether the middle was left out."""
        file = f"{self.name}.jsonl"
        path = find(self.data, (file, f"data/{file}"), f"infinitebench {self.name}")
        made = (self._sample(row) for row in read_jsonl(path))
        chosen = choose(made, n, f"{self.name}/{seed}")
        return [cut_middle(f"infinitebench {self.name}", count_tokens, length, sample) for sample in chosen]

    def score(self, sample: Sample, answer: str) -> float:
        """The task's official measure."""
        return self.measure(answer, sample.references)

    def _sample(self, row: Row) -> Sample:
        template = parse(self.name, self.prompt, _FIELDS)
        fields = {"input": row.text("input") if "{input}" in self.prompt else ""}
        references = row.scalars("answer")
        if self.options:
            options = row.texts("options", least=_N_OPTIONS)
            if references[0] not in options[:_N_OPTIONS]:
                row.fail("'answer' is none of the first four options")
            fields |= dict(zip(scoring.LETTERS, options, strict=False))
            references = (references[0], scoring.LETTERS[options.index(references[0])])
        return Sample(
            id=f"line-{row.number}",
            context=f"{template.before}{row.text('context')}",
            question=template.question(**fields),
            references=references,
            max_tokens=self.max_tokens,
            answer_prefix=self.answer_prefix,
        )


def _best(metric: metrics.Metric) -> Measure:
    return lambda answer, references: metrics.best(metric, answer, references)


TASKS: tuple[Local, ...] = (
    Local("longbook_sum_eng", "Sum up the book below.\n\n{context}\n\nSummary:", 1200, _best(rouge_l_sum)),
    Local(
        "longbook_choice_eng",
        f"Read the book and answer the question about it.\n\n{{context}}\n\nQuestion: {{input}}\n\n"
        f"One of these options is right. Give its letter (A, B, C or D) and nothing else.\n{_OPTIONS}",
        40,
        scoring.choice,
        answer_prefix="The letter of the right option is ",
        options=True,
    ),
    Local(
        "longbook_qa_eng",
        "Read the book and answer the question about it as briefly as you can.\n\n{context}\n\n"
        "Question: {input}\nAnswer:",
        40,
        _best(metrics.qa_f1),
    ),
    Local(
        "longbook_qa_chn",
        "请先读下面这本书，再回答问题。\n\n{context}\n\n问题：{input}\n请用最少的字作答。\n答案：",
        40,
        _best(metrics.qa_f1_zh),
    ),
    Local(
        "longdialogue_qa_eng",
        'In the script below, one name of a character is replaced by "$$MASK$$". Find out who it is.\n\n'
        'The script:\n\n---\n\n{context}\n\n---\n\nThe script ends here.\n\nWho is "$$MASK$$"? Give one name as the '
        "script writes it before a colon, and nothing else.",
        40,
        scoring.dialogue,
    ),
    Local(
        "math_calc",
        "Work out an expression step by step and give the value after each step.\n\n"
        "Expression: 2 + 5 + 1\nValues: [7, 8]\n\nExpression: 9 - 4 + 3 - 6\nValues: [5, 8, 2]\n\n"
        "Expression: {context}\nValues:",
        30000,
        scoring.leading_numbers,
    ),
    Local(
        "code_debug",
        "One function of the code below has an error that was put in on purpose and makes it fail. Find it."
        f"\n\n{{context}}\n\nWhich function has the error?\n{_OPTIONS}\n\nGive the letter and the name of "
        "the function as above, and nothing else. The right option is:",
        5,
        scoring.debug,
        options=True,
    ),
)
