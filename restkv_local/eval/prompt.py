"""Samples as tokens: in the engine's own chat format, up to where the answer begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RestkvError
from .sample import Sample

Engine = Any
Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Prompt:
    """A sample as tokens. prompt: up to where the answer begins, its given prefix included. answer: the first reference
    behind it, whose log-probability is measured; empty where a sample has none."""

    sample: Sample
    prompt: Tokens
    answer: Tokens

    @property
    def positions(self) -> int:
        """Most positions that reading and answering take."""
        return len(self.prompt) + max(self.sample.max_tokens, len(self.answer))


def render(engine: Engine, sample: Sample) -> Prompt:
    """The tokens of a sample."""
    message = sample.context + sample.question
    if sample.chat:
        prompt = chat_tokens(engine, message)
        answer = _answer(engine, sample.answer_prefix, sample.references)
    else:
        # In plain text the tokenizer may join the end of the message with what follows.
        whole = message + sample.answer_prefix
        prompt = engine.tokenize(whole.encode(), add_bos=True, special=False)
        if not sample.references:
            return Prompt(sample, as_tokens(prompt), as_tokens([]))
        longer = engine.tokenize((whole + sample.references[0]).encode(), add_bos=True, special=False)
        n = shared_length(prompt, longer)
        return Prompt(sample, as_tokens(prompt[:n]), as_tokens(longer[n:]))
    stem = engine.tokenize(sample.answer_prefix.encode(), add_bos=False, special=False) if sample.answer_prefix else []
    n = shared_length(stem, answer) if answer else len(stem)
    return Prompt(sample, as_tokens([*prompt, *stem[:n]]), as_tokens(answer[n:]))


def _answer(engine: Engine, prefix: str, references: Sequence[str]) -> list[int]:
    if not references:
        return []
    tokens: list[int] = engine.tokenize(f"{prefix}{references[0]}".encode(), add_bos=False, special=False)
    return tokens


def as_tokens(values: Sequence[int]) -> Tokens:
    """Token ids in 4 bytes each."""
    return np.asarray(values, dtype=np.int32)


def chat_tokens(engine: Engine, content: str) -> list[int]:
    """Tokens of a chat with one user message, up to where the answer begins, in the engine's own chat format."""
    return talk_tokens(engine, [content])


def talk_tokens(engine: Engine, contents: Sequence[str]) -> list[int]:
    """The same of a longer chat: messages of the user and of the assistant in turn, the last one the user's."""
    from ..engine.answers.chat_templates import handler

    messages = [
        {"role": "assistant" if number % 2 else "user", "content": content} for number, content in enumerate(contents)
    ]
    try:
        handler(engine)(llama=_Listener(engine), messages=messages)
    except _Rendered as rendered:
        return rendered.tokens
    raise RestkvError(f"the chat format '{engine.chat_format}' renders no prompt; choose a model with a chat template")


class _Rendered(Exception):
    """Ends a chat handler when the prompt is there."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens


class _Listener:
    """Stands for an engine in a chat handler, which has no other way to say what it would complete."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def create_completion(self, prompt: list[int], **options: Any) -> None:
        raise _Rendered(list(prompt))


def shared_length(a: Sequence[int] | Tokens, b: Sequence[int] | Tokens) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    differ = np.nonzero(np.asarray(a[:n]) != np.asarray(b[:n]))[0]
    return int(differ[0]) if len(differ) else n
