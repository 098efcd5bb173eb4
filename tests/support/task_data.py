"""Small files in the official formats of the evaluation tasks, written for the tests; a tokenizer without a model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PIECE = re.compile(r"\w{1,5}|\s+|[^\w\s]")


def fake_count(text: str) -> int:
    """Tokens of a tokenizer that is nobody's: pieces of words, blanks, marks."""
    return len(_PIECE.findall(text))


class Counter:
    """A tokenizer that knows how much it was asked."""

    def __init__(self) -> None:
        self.calls = 0
        self.tokens = 0

    def __call__(self, text: str) -> int:
        self.calls += 1
        n = fake_count(text)
        self.tokens += n
        return n


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def long_text(n_sentences: int, topic: str = "river") -> str:
    return " ".join(f"Sentence {i} says that the {topic} number {i * 7} is wide." for i in range(n_sentences))


def squad() -> dict[str, Any]:
    """SQuAD 2.0: two articles, one question that cannot be answered."""

    def paragraph(text: str, *qas: dict[str, Any]) -> dict[str, Any]:
        return {"context": text, "qas": list(qas)}

    def question(text: str, *answers: str, impossible: bool = False) -> dict[str, Any]:
        listed = [{"text": answer, "answer_start": 0} for answer in answers]
        return {"question": text, "id": text, "answers": listed, "is_impossible": impossible}

    lakes = [
        paragraph("Lake Orta lies in Piedmont.", question("Where does Lake Orta lie?", "Piedmont", "in Piedmont")),
        paragraph("Lake Como is shaped like a Y.", question("Who drained Lake Como?", impossible=True)),
        *[paragraph(f"Lake number {i} is deep. {long_text(2)}") for i in range(5)],
    ]
    birds = [paragraph("The wren is small.", question("How large is the wren?", "small"))]
    birds += [paragraph(f"Bird number {i} sings. {long_text(2, 'nest')}") for i in range(5)]
    articles = [{"title": "Lakes", "paragraphs": lakes}, {"title": "Birds", "paragraphs": birds}]
    return {"version": "v2.0", "data": articles}


def hotpotqa() -> list[dict[str, Any]]:
    return [
        {
            "_id": str(i),
            "question": f"Who built bridge {i}?",
            "answer": f"Builder {i}",
            "type": "bridge",
            "supporting_facts": [[f"Bridge {i}", 0]],
            "context": [
                [f"Bridge {i}", [f"Bridge {i} was built by Builder {i}.", " It is old."]],
                [f"Town {i}", [f"Town {i} has a bridge.", long_text(2)]],
            ],
        }
        for i in range(6)
    ]


def longbench_row(**changes: Any) -> dict[str, Any]:
    row = {
        "input": "Who is the captain?",
        "context": f"Anna is the captain. {long_text(40)} The ship is grey.",
        "answers": ["Anna", "captain Anna"],
        "length": 400,
        "dataset": "narrativeqa",
        "language": "en",
        "all_classes": None,
        "_id": "0",
    }
    return row | changes


def trec_row(**changes: Any) -> dict[str, Any]:
    row = longbench_row(
        context="Question: Where is Rome?\nType: Location\nQuestion: Who was Ada?\nType: Person",
        input="Question: Where is Oslo?\nType:",
        answers=["Location"],
        all_classes=["Location", "Person", "Location of a city"],
        dataset="trec",
    )
    return row | changes


def infinite_row(**changes: Any) -> dict[str, Any]:
    row = {
        "id": 0,
        "context": f"Anna is the captain. {long_text(40)} The ship is grey.",
        "input": "Who is the captain?",
        "answer": ["Anna"],
        "options": ["Anna", "Berta", "Clara", "Dora"],
    }
    return row | changes


GSM8K = {
    "question": "Tom has 3 bags with 6 apples each. How many apples has he?",
    "answer": "He has 3 * 6 = <<3*6=18>>18 apples.\n#### 18",
}
MULTIARITH = {
    "iIndex": 1,
    "lAlignments": [],
    "lEquations": ["X=(7.0*(9.0-2.0))"],
    "lSolutions": [49.0],
    "sQuestion": "Lena had 9 boxes of 7 pens and gave 2 boxes away. How many pens are left?",
}
ARC = {
    "id": "x",
    "question": {
        "stem": "What does a plant need?",
        "choices": [{"text": "light", "label": "A"}, {"text": "iron", "label": "B"}, {"text": "wool", "label": "C"}],
    },
    "answerKey": "A",
}
HUMANEVAL = {
    "task_id": "test/0",
    "prompt": 'import math\n\n\ndef halve(x: int) -> int:\n    """Half of x, rounded down."""\n',
    "canonical_solution": "    return x // 2\n",
    "test": "def check(candidate):\n    assert candidate(7) == 3\n    assert candidate(-1) == -1\n",
    "entry_point": "halve",
}
