"""Question answering among distracting documents: qa_1 from SQuAD, qa_2 from HotpotQA, from local files."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...errors import ConfigError
from ..files import Row, find, read_json
from ..fit import Filler
from ..metrics import string_match_part
from ..sample import CountTokens, Sample

# Of RULER's configuration.
MAX_TOKENS = 32


@dataclass(frozen=True)
class Question:
    """own: documents with the answer, always shown; near: of the same article, shown before all others.
    Documents are given by their place in the pool."""

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pool:
    """All documents of a file, and the questions about them."""

    documents: tuple[str, ...]
    questions: tuple[Question, ...]


def read_squad(path: Path) -> Pool:
    """Official JSON of SQuAD 1.1 or 2.0; questions without an answer are left out, as RULER does."""
    top = Row(path.name, 1, {"data": _field(path.name, read_json(path), "data")})
    found: list[tuple[str, tuple[str, ...], str, list[str]]] = []
    texts: dict[str, None] = {}
    for article in top.rows("data"):
        paragraphs = article.rows("paragraphs")
        near = [paragraph.text("context") for paragraph in paragraphs]
        texts |= dict.fromkeys(near)
        for paragraph, own in zip(paragraphs, near, strict=True):
            for row in paragraph.rows("qas", least=0):
                if not row.values.get("is_impossible", False):
                    answers = tuple(answer.text("text") for answer in row.rows("answers"))
                    found.append((row.text("question"), answers, own, near))
    places = {text: i for i, text in enumerate(sorted(texts))}
    questions = [
        Question(text, answers, (places[own],), tuple(dict.fromkeys(places[other] for other in near if other != own)))
        for text, answers, own, near in found
    ]
    return _pool(path, places, questions)


def read_hotpotqa(path: Path) -> Pool:
    """Official JSON of HotpotQA; a document is its title, a line end and its sentences, as in RULER."""
    top = Row(path.name, 1, {"list": read_json(path)})
    found: list[tuple[str, str, list[str]]] = []
    texts: dict[str, None] = {}
    for row in top.rows("list"):
        own = [_document(row, i, pair) for i, pair in enumerate(row.items("context"))]
        texts |= dict.fromkeys(own)
        found.append((row.text("question"), row.text("answer"), own))
    places = {text: i for i, text in enumerate(sorted(texts))}
    questions = [
        Question(text, (answer,), tuple(dict.fromkeys(places[document] for document in own)))
        for text, answer, own in found
    ]
    return _pool(path, places, questions)


def _document(row: Row, i: int, pair: object) -> str:
    if not isinstance(pair, list) or len(pair) != 2:
        row.fail(f"'context[{i}]' must be a title and a list of sentences")
    inner = Row(f"{row.place}: context[{i}]", row.number, {"title": pair[0], "sentences": pair[1]})
    return f"{inner.text('title')}\n{''.join(inner.texts('sentences', least=0))}"


def _field(name: str, value: object, field: str) -> object:
    if not isinstance(value, dict) or field not in value:
        raise ConfigError(f"{name}: an object with the field '{field}' was expected")
    return value[field]


def _pool(path: Path, places: dict[str, int], questions: list[Question]) -> Pool:
    if not questions:
        raise ConfigError(f"{path.name}: no question has an answer")
    return Pool(tuple(places), tuple(questions))


@dataclass(frozen=True)
class QuestionAnswering:
    """One question with its documents and as many others as fit, in random order."""

    name: str
    files: tuple[str, ...]
    read: Callable[[Path], Pool]
    data: Path | None

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """See Task. Which questions of the file is chosen by the seed."""
        pool = self.read(find(self.data, self.files, self.name))
        chosen = random.Random(f"{self.name}/{seed}").sample(range(len(pool.questions)), min(n, len(pool.questions)))
        found = []
        filler = Filler(self.name, count_tokens, length)
        for index in chosen:
            question = pool.questions[index]
            order = self._order(pool, question, seed, index)
            filler.least = len(question.own)
            found.append(filler.fill(partial(self._sample, pool, question, order, seed, index), len(order)))
        return found

    def score(self, sample: Sample, answer: str) -> float:
        """1 when the answer contains one of the right ones."""
        return string_match_part(answer, sample.references)

    def _order(self, pool: Pool, question: Question, seed: int, index: int) -> list[int]:
        """Documents in the order in which they are taken in."""
        rng = random.Random(f"{self.name}/{seed}/{index}")
        near = rng.sample(question.near, len(question.near))
        taken = {*question.own, *near}
        others = [i for i in range(len(pool.documents)) if i not in taken]
        return [*question.own, *near, *rng.sample(others, len(others))]

    def _sample(
        self, pool: Pool, question: Question, order: list[int], seed: int, index: int, n_documents: int
    ) -> Sample:
        shown = order[:n_documents]
        random.Random(f"{self.name}/{seed}/{index}/order").shuffle(shown)
        documents = "\n\n".join(f"Document {i}:\n{pool.documents[place]}" for i, place in enumerate(shown, 1))
        ask = "Answer the question from the documents that are given. Write the answer alone and nothing else."
        return Sample(
            id=f"question-{index}",
            context=f"{ask}\n\nThe documents:\n\n{documents}\n\n{ask}\n\n",
            question=f"Question: {question.text}",
            answer_prefix="Answer: ",
            references=question.answers,
            max_tokens=MAX_TOKENS,
        )
