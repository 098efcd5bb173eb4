"""Documents as tokens: the text, and for each question all that stands before its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...errors import ConfigError
from ..prompt import Tokens, as_tokens, shared_length, talk_tokens
from .document import Document
from .material import Question

Engine = Any
# Every question behind the earlier ones and their right answers; every question behind the text.
KEPT, FRESH = "kept", "fresh"
MODES = (KEPT, FRESH)


class Form(Protocol):
    """How a talk about a text is written."""

    def tokens(self, text: str, before: Sequence[Question], question: str) -> list[int]:
        """A text, questions with their right answers, and a question, up to where its answer begins."""

    def answer(self, prompt: list[int], question: Question, text: str, before: Sequence[Question]) -> tuple[int, int]:
        """Appends the beginning of an answer and the right answer to a prompt; returns where each begins."""


class Chat:
    """In the chat format of the engine: the text stands in the first message."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def tokens(self, text: str, before: Sequence[Question], question: str) -> list[int]:
        """See Form."""
        asked = [*(one.text for one in before), question]
        asked[0] = text + asked[0]
        contents = [asked[0]]
        for one, following in zip(before, asked[1:], strict=True):
            contents += [_answered(one), following]
        return talk_tokens(self._engine, contents)

    def answer(self, prompt: list[int], question: Question, text: str, before: Sequence[Question]) -> tuple[int, int]:
        """See Form."""
        stem = self._engine.tokenize(question.stem.encode(), add_bos=False, special=False)
        whole = self._engine.tokenize(f"{question.stem}{question.answer}".encode(), add_bos=False, special=False)
        start = len(prompt)
        prompt += whole
        return start, start + shared_length(stem, whole)  # a tokenizer may join the end of the stem with the answer


class Plain:
    """As plain text, for models that know no chat."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def tokens(self, text: str, before: Sequence[Question], question: str) -> list[int]:
        """See Form."""
        return self._read(f"{_history(text, before)}Question: {question}\nAnswer:" if question else text)

    def answer(self, prompt: list[int], question: Question, text: str, before: Sequence[Question]) -> tuple[int, int]:
        """See Form."""
        asked = f"{_history(text, before)}Question: {question.text}\nAnswer: {question.stem}"
        stem, whole = self._read(asked), self._read(f"{asked}{question.answer}")
        start = shared_length(prompt, whole)
        prompt[:] = whole
        return start, max(start, shared_length(stem, whole))

    def _read(self, text: str) -> list[int]:
        tokens: list[int] = self._engine.tokenize(text.encode(), add_bos=True, special=False)
        return tokens


@dataclass(frozen=True)
class Turn:
    """A question as tokens. number: 1 for the first. prompt: all before the answer; its last `stem` tokens begin the
    answer. answer: the right one; parts: places in it, one for each part that must be right. targets: positions of the
    text that hold the answer."""

    number: int
    question: Question
    prompt: Tokens
    stem: int
    answer: Tokens
    parts: tuple[tuple[int, int], ...]
    targets: Tokens

    @property
    def positions(self) -> int:
        """What reading and answering take."""
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Script:
    """A document as tokens. text: how many of its first tokens are read before anything is asked. turns: by mode, in
    the order in which they are asked."""

    document: Document
    text: int
    turns: dict[str, tuple[Turn, ...]]

    @property
    def positions(self) -> int:
        """What the longest of its talks takes."""
        return max(turn.positions for turns in self.turns.values() for turn in turns)


def frame(form: Form) -> int:
    """Tokens of the format itself, without a text and a question."""
    return len(form.tokens("", (), ""))


def script(engine: Engine, form: Form, document: Document, modes: Sequence[str]) -> Script:
    """The tokens of a document and of its questions. Raises ConfigError where the chat format does not repeat what was
    said."""
    text, questions = document.text, document.questions
    without = form.tokens(text, (), "")
    n_text = min(shared_length(form.tokens(text, (), question.text), without) for question in questions)
    pieces = _pieces(engine, without[:n_text])
    turns: dict[str, tuple[Turn, ...]] = {}
    for mode in modes:
        found = []
        for number, question in enumerate(questions):
            before = questions[:number] if mode == KEPT else ()
            tokens = form.tokens(text, before, question.text)
            stem, answer = form.answer(tokens, question, text, before)
            if shared_length(tokens, without) < n_text:
                raise ConfigError("the chat format of this model changes the text when a talk goes on; try --raw")
            right = tokens[answer:]
            parts = spans(_pieces(engine, right), [part.encode() for part in question.wanted])
            targets = spans(pieces, [target.encode() for target in question.targets], anywhere=True)
            if len(parts) < len(question.wanted) or len(targets) < len(question.targets):
                raise ConfigError("the tokenizer of this model does not give back a text as it was; choose another")
            positions = sorted({position for span in targets for position in range(*span)})
            found.append(
                Turn(
                    number + 1, question, as_tokens(tokens[:answer]), answer - stem, as_tokens(right), tuple(parts),
                    as_tokens(positions),
                )  # fmt: skip
            )
        turns[mode] = tuple(found)
    return Script(document, n_text, turns)


def spans(pieces: Sequence[bytes], wanted: Sequence[bytes], *, anywhere: bool = False) -> list[tuple[int, int]]:
    """From which piece to before which one each of some texts stands; fewer when one is not there.

    anywhere: each is looked for in the whole, else behind the one before it.
    """
    ends = np.cumsum([len(piece) for piece in pieces])
    whole = b"".join(pieces)
    found: list[tuple[int, int]] = []
    after = 0
    for text in wanted:
        start = whole.find(text, 0 if anywhere else after)
        if start < 0:
            break
        after = start + len(text)
        first, last = np.searchsorted(ends, (start, after - 1), side="right")
        found.append((int(first), int(last) + 1))
    return found


def _pieces(engine: Engine, tokens: Sequence[int]) -> list[bytes]:
    return [engine.detokenize([token], special=True) for token in tokens]


def _answered(question: Question) -> str:
    return f"{question.stem}{question.answer}."


def _history(text: str, before: Sequence[Question]) -> str:
    return text + "".join(f"Question: {one.text}\nAnswer: {_answered(one)}\n\n" for one in before)
