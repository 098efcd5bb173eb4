"""Completions: one loop makes the chunks of a stream, and a whole answer is these chunks put together."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...errors import ConfigError, ContextOverflow
from .logprobs import LogprobList, Scored, joined
from .text import AnswerText


class Speaker(Protocol):
    """What a completion needs of an engine."""

    model_path: str
    cache: Any

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Any, None]:
        """Tokens of an answer to a prompt, without end."""

    def save_state(self) -> Any:
        """The cache, for `cache`."""

    def is_end(self, token: int) -> bool:
        """Whether a token ends an answer."""

    def prompt_text(self, tokens: Sequence[int]) -> str:
        """The text of a prompt that was given as tokens."""

    def pieces(self, prompt: list[int]) -> Callable[[int], bytes]:
        """A function that gives the bytes of one token after the other of an answer to a prompt."""

    def scored(self, token: int, top: int) -> Scored:
        """The token that was drawn last with its log-probability, and the `top` best ones."""


@dataclass
class Request:
    """A prompt and how it is answered. stops: bytes that end the answer and are no part of it; limit: most tokens;
    logprobs: how many of the best to name beside each token, or None; sampling: arguments of generate."""

    prompt: str | list[int]
    tokens: list[int]
    limit: int
    stops: list[bytes] = field(default_factory=list)
    echo: bool = False
    logprobs: int | None = None
    model: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


def limit_of(n_prompt: int, max_tokens: int | None, n_ctx: int) -> int:
    """Tokens that an answer may have: at most what the context has left. Raises ConfigError and ContextOverflow."""
    if n_prompt == 0:
        raise ConfigError("the prompt is empty, and this model has no token that begins a text; give at least a word")
    if n_prompt >= n_ctx:
        raise ContextOverflow(
            f"Requested tokens ({n_prompt}) exceed context window of {n_ctx}; "
            f"shorten the text or choose a larger n_ctx",
            n_prompt + 1,
            n_ctx,
        )
    left = n_ctx - n_prompt
    return left if max_tokens is None or max_tokens <= 0 else min(max_tokens, left)


def stops_of(stop: str | Sequence[str] | None) -> list[bytes]:
    """Stop strings as bytes. An empty one, which would end every answer, stands for none."""
    given = [stop] if isinstance(stop, str) else list(stop or [])
    return [text.encode() for text in given if text]


@dataclass
class _Chunk:
    text: str = ""
    logprobs: dict[str, Any] | None = None
    finish: str | None = None


def complete(speaker: Speaker, request: Request, stream: bool) -> Iterator[dict[str, Any]]:
    """The chunks of an answer as they come, or one response; in the shapes of OpenAI's completions."""
    head = {
        "id": f"cmpl-{uuid.uuid4()}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": request.model if request.model is not None else speaker.model_path,
    }
    said: list[int] = []
    chunks = _chunks(speaker, request, said)
    if stream:
        for chunk in chunks:
            yield {**head, "choices": [_choice(chunk)]}
        return
    parts = list(chunks)
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    whole = _Chunk(
        text="".join(part.text for part in parts),
        logprobs=None if request.logprobs is None else joined(logprobs),
        finish=parts[-1].finish,
    )
    n_prompt, n_said = len(request.tokens), len(said)
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n_said, "total_tokens": n_prompt + n_said}
    yield {**head, "choices": [_choice(whole)], "usage": usage}


def _choice(chunk: _Chunk) -> dict[str, Any]:
    return {"text": chunk.text, "index": 0, "logprobs": chunk.logprobs, "finish_reason": chunk.finish}


def _chunks(speaker: Speaker, request: Request, said: list[int]) -> Iterator[_Chunk]:
    """Text as soon as it is certain, with the log-probabilities of the tokens since the chunk before; at the end one
    chunk without text that says why it ended. `said` fills with the answer's tokens."""
    before = ""
    if request.echo or request.logprobs is not None:
        before = request.prompt if isinstance(request.prompt, str) else speaker.prompt_text(request.prompt)
    if request.echo and before:
        yield _Chunk(before)
    text, piece_of, scored = AnswerText(request.stops), speaker.pieces(request.tokens), LogprobList(len(before))
    finish = "stop"  # also when a criterion of the caller ends the generator
    with closing(speaker.generate(list(request.tokens), **request.sampling)) as tokens:
        for token in tokens:
            if speaker.is_end(token):
                break
            said.append(token)
            piece = piece_of(token)
            if request.logprobs is not None:
                scored.add(piece, speaker.scored(token, request.logprobs))
            if part := text.add(piece):
                yield _Chunk(part, scored.take())
            if text.stopped:
                break
            if len(said) >= request.limit:
                finish = "length"
                break
        if speaker.cache:
            speaker.cache[request.tokens + said] = speaker.save_state()
    part, rest = text.end(), scored.take()
    if part or rest:
        yield _Chunk(part, rest)
    yield _Chunk(finish=finish)
