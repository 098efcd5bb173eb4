"""LongBench (Bai et al., 2024): its 16 English datasets, from local files in the official format.

Lengths of answers, cutting in the middle, the sets that go without a chat template and the measures are those of the
official scripts (github.com/THUDM/LongBench: pred.py, eval.py, metrics.py, config/dataset2maxlen.json).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from .. import metrics
from ..about import About
from ..files import Row, choose, find, read_json, read_jsonl
from ..fit import cut_middle
from ..metrics import Metric
from ..rouge import rouge_l
from ..sample import CountTokens, Sample, Task
from ..templates import Template, parse
from .download import download as download
from .prompts import PROMPTS

PROMPT_FILE = "dataset2prompt.json"
# The last lines of code, and at most so many characters of them, count as the question of a completion: they guide a
# guided prefill.
CODE_LINES = 8
CODE_CHARS = 800


@dataclass(frozen=True)
class Dataset:
    """What the official scripts say of a dataset. metric: None for classification, which needs the classes."""

    asks: str
    max_tokens: int
    measure: str
    metric: Metric | None
    chat: bool = True
    first_line: bool = False
    code: bool = False


_F1, _ROUGE = ("F1 of words", metrics.qa_f1), ("ROUGE-L", rouge_l)
_CODE = ("edit similarity", metrics.code_similarity)
DATASETS: dict[str, Dataset] = {
    "narrativeqa": Dataset("a question about a story", 128, *_F1),
    "qasper": Dataset("a question about a scientific article", 128, *_F1),
    "multifieldqa_en": Dataset("a question about a text of one of many fields", 64, *_F1),
    "hotpotqa": Dataset("a question that takes two passages", 32, *_F1),
    "2wikimqa": Dataset("a question that takes two or more passages", 32, *_F1),
    "musique": Dataset("a question that takes up to four passages", 32, *_F1),
    "gov_report": Dataset("a summary of a report", 512, *_ROUGE),
    "qmsum": Dataset("an answer about a meeting", 512, *_ROUGE),
    "multi_news": Dataset("a summary of several articles", 512, *_ROUGE),
    "trec": Dataset("the type of a question, after examples", 64, "classification", None, chat=False, first_line=True),
    "triviaqa": Dataset("a question about a passage, after examples", 32, *_F1, chat=False, first_line=True),
    "samsum": Dataset("a summary of a dialogue, after examples", 128, *_ROUGE, chat=False, first_line=True),
    "passage_count": Dataset("how many different paragraphs there are", 32, "count", metrics.count),
    "passage_retrieval_en": Dataset("which paragraph an abstract is of", 32, "retrieval", metrics.retrieval),
    "lcc": Dataset("the next line of a file", 64, *_CODE, chat=False, code=True),
    "repobench-p": Dataset("the next line of a file, after others of its project", 64, *_CODE, chat=False, code=True),
}
NAMES: tuple[str, ...] = tuple(DATASETS)
ABOUT: tuple[About, ...] = tuple(
    About(name, one.asks, one.measure, f"`{name}.jsonl`", one.max_tokens) for name, one in DATASETS.items()
)


@dataclass(frozen=True)
class ClassSample(Sample):
    """A sample whose answer is one of several classes."""

    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LongBench:
    """One dataset. data: folder with NAME.jsonl, and dataset2prompt.json if the official prompts are wanted."""

    name: str
    data: Path | None

    @property
    def _dataset(self) -> Dataset:
        return DATASETS[self.name]

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """See Task. Which rows of the file is chosen by the seed; label "cut" says whether the middle was left out."""
        path = find(self.data, (f"{self.name}.jsonl", f"data/{self.name}.jsonl"), f"longbench {self.name}")
        template, wording = self._template(path.parent)
        labels = {"prompt": wording}
        made = (self._sample(row, template, labels) for row in read_jsonl(path))
        chosen = choose(made, n, f"{self.name}/{seed}")
        return [cut_middle(self.name, count_tokens, length, sample) for sample in chosen]

    def score(self, sample: Sample, answer: str) -> float:
        """The dataset's measure, the best over all right answers."""
        if self._dataset.first_line:
            answer = metrics.first_line(answer)
        return metrics.best(self._metric(sample), answer, sample.references)

    def _metric(self, sample: Sample) -> Metric:
        metric = self._dataset.metric
        if metric is not None:
            return metric
        classes = sample.classes if isinstance(sample, ClassSample) else ()
        return lambda answer, reference: metrics.classification(answer, reference, classes)

    def _template(self, folder: Path) -> tuple[Template, str]:
        """The official prompt where its file lies beside the data, otherwise ours; and which it is."""
        for path in (folder / PROMPT_FILE, folder.parent / PROMPT_FILE):
            if path.is_file():
                prompts = read_json(path)
                if not isinstance(prompts, dict):
                    raise ConfigError(f"{path.name}: an object with a template for each dataset was expected")
                row = Row(path.name, 1, prompts)
                return parse(f"{path.name}: '{self.name}'", row.text(self.name)), "official"
        return parse(self.name, PROMPTS[self.name]), "own words"

    def _sample(self, row: Row, template: Template, labels: Mapping[str, str]) -> Sample:
        context = f"{template.before}{row.text('context')}"
        question = template.question(input=row.text("input"))
        if self._dataset.code:
            context, question = _last_lines(context, question)
        references = row.texts("answers")
        values = (f"line-{row.number}", context, question, references, self._dataset.max_tokens)
        if self._dataset.metric is None:
            classes = row.texts("all_classes")
            return ClassSample(*values, chat=self._dataset.chat, labels=labels, classes=classes)
        return Sample(*values, chat=self._dataset.chat, labels=labels)


def tasks(data: Path | None = None) -> list[Task]:
    """All 16 tasks in the order of NAMES. Files are read when samples are asked for."""
    return [LongBench(name, data) for name in NAMES]


def _last_lines(context: str, question: str) -> tuple[str, str]:
    """The same text parted before its last lines of code."""
    whole = f"{context}{question}"
    lines = whole.splitlines(keepends=True)
    tail = "".join(lines[-(CODE_LINES + 1) :])[-CODE_CHARS:]
    return whole[: len(whole) - len(tail)], tail
