"""A stream says what a whole answer says: with made-up tokens, cut at any byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.engine.answers.completion import Request, complete, limit_of, stops_of
from restkv_local.engine.answers.logprobs import best, log_softmax
from restkv_local.engine.answers.text import ForeignPieces
from restkv_local.errors import ConfigError, ContextOverflow

END = -1


class Speaker:
    """An engine that says given pieces of bytes, one as each token; then a token that ends the answer, or no end."""

    def __init__(self, pieces: Sequence[bytes], ends: bool = True, cache: Any = None) -> None:
        self.said, self.ends, self.cache = list(pieces), ends, cache
        self.model_path = "made-up.gguf"
        self.asked = 0
        self.closed = False

    def generate(self, tokens: Sequence[int], **_sampling: Any) -> Iterator[int]:
        try:
            for i in range(len(self.said)):
                self.asked += 1
                yield i
            if self.ends:
                yield END
        finally:
            self.closed = True

    def save_state(self) -> str:
        return "state"

    def is_end(self, token: int) -> bool:
        return token == END

    def prompt_text(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def pieces(self, prompt: list[int]) -> Callable[[int], bytes]:
        return lambda token: self.said[token]

    def scored(self, token: int, top: int) -> tuple[str, float, dict[str, float]]:
        return f"<{token}>", -float(token), {f"<{token}>": -float(token)}


def request(prompt: Any = "Hi", limit: int = 10**6, **options: Any) -> Request:
    options["stops"] = stops_of(options.pop("stop", None))
    return Request(prompt=prompt, tokens=[1, 2], limit=limit, **options)


def whole(pieces: Sequence[bytes], **options: Any) -> dict[str, Any]:
    (response,) = complete(Speaker(pieces), request(**options), stream=False)
    choice = dict(response["choices"][0])
    assert response["usage"]["completion_tokens"] <= options.get("limit", 10**6)
    return choice


def streamed(pieces: Sequence[bytes], **options: Any) -> dict[str, Any]:
    chunks = list(complete(Speaker(pieces), request(**options), stream=True))
    choices = [chunk["choices"][0] for chunk in chunks]
    *parts, last = choices
    assert last["text"] == "" and last["logprobs"] is None and last["finish_reason"]
    assert all(part["finish_reason"] is None for part in parts)
    logprobs: dict[str, list[Any]] | None = None
    if options.get("logprobs") is not None:
        logprobs = {key: [] for key in ("tokens", "text_offset", "token_logprobs", "top_logprobs")}
        for part in parts:
            for key, values in (part["logprobs"] or {}).items():
                logprobs[key] += values
    text = "".join(part["text"] for part in parts)
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": last["finish_reason"]}


def expected(pieces: Sequence[bytes], stops: Sequence[str], limit: int) -> tuple[str, str]:
    """The text up to the first stop string that is complete when a token is, else all of it; and why it ended."""
    text = b""
    for n, piece in enumerate(pieces, 1):
        text += piece
        found = [text.index(stop.encode()) for stop in stops if stop.encode() in text]
        if found:
            return text[: min(found)].decode("utf-8", "ignore"), "stop"
        if n == limit:
            return text.decode("utf-8", "ignore"), "length"
    return text.decode("utf-8", "ignore"), "stop"


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[bytes], list[str], int]:
    """Text of characters of one to four bytes, or bytes that are no text, in pieces; stop strings out of it."""
    alphabet = "ab\n é₹Г😀"
    texts = st.one_of(st.text(alphabet, max_size=30), st.text(max_size=20)).map(str.encode)
    data = draw(st.one_of(texts, st.binary(max_size=30)))
    cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=len(data))))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    inside = [data.decode("utf-8", "ignore")[i : i + 3] for i in range(9)]
    stop = st.one_of(st.text(alphabet, max_size=4), st.sampled_from(inside))
    stops = [text for text in draw(st.lists(stop, max_size=3)) if text]
    return pieces, stops, draw(st.integers(1, len(pieces) + 2))


@given(answers(), st.booleans(), st.one_of(st.none(), st.integers(0, 3)))
def test_a_stream_is_the_whole_answer(
    case: tuple[list[bytes], list[str], int], echo: bool, logprobs: int | None
) -> None:
    pieces, stops, limit = case
    options = {"stop": stops, "limit": limit, "echo": echo, "logprobs": logprobs}
    said = whole(pieces, **options)
    assert streamed(pieces, **options) == said
    text, finish = expected(pieces, stops, limit)
    assert said["text"] == ("Hi" if echo else "") + text
    assert said["finish_reason"] == finish


@pytest.mark.parametrize(
    ("pieces", "stop", "text"),
    [
        ([b"It costs 5 ", b"\xe2", b"\x82", b"\xb9"], None, "It costs 5 ₹"),
        ([b"\xd0", b"\x93", "отово".encode()], None, "Готово"),
        ([b"a", b"\xf0\x9f", b"\x98\x80", b"EN", b"D"], "END", "a😀"),
        ([b"a EN", b"."], "END", "a EN."),
        ([b"a EN"], "END", "a EN"),
        ([b"abc"], ["c", "b"], "a"),
        ([b"ab", b"cd"], ["abcd", "bc"], ""),
        ([b"a"], [""], "a"),
    ],
)
def test_text_that_streams_lost(pieces: list[bytes], stop: Any, text: str) -> None:
    assert whole(pieces, stop=stop)["text"] == streamed(pieces, stop=stop)["text"] == text


def test_text_comes_as_soon_as_it_is_certain() -> None:
    chunks = complete(Speaker([b"ab", b"E", b"N", b"x", b"\xe2", b"\x82\xb9"]), request(stop="END"), stream=True)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["ab", "ENx", "₹", ""]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_no_token_is_asked_for_beyond_the_limit(limit: int) -> None:
    speaker = Speaker([b"\xf0", b"\x9f", b"\x98", b"\x80"])
    (response,) = complete(speaker, request(limit=limit), stream=False)
    assert speaker.asked == limit == response["usage"]["completion_tokens"]
    assert response["choices"][0] == {"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}


def test_a_stream_that_is_left_ends_the_generator() -> None:
    speaker = Speaker([b"a", b"b"])
    stream = complete(speaker, request(), stream=True)
    assert next(stream)["choices"][0]["text"] == "a"
    stream.close()  # type: ignore[attr-defined]
    assert speaker.closed


def test_logprobs_have_their_places() -> None:
    said = whole([b"a", b"\xe2", b"\x82\xb9", b"b"], logprobs=1)["logprobs"]
    assert said["text_offset"] == [2, 3, 3, 4]
    assert said["tokens"] == ["<0>", "<1>", "<2>", "<3>"] and said["token_logprobs"] == [0, -1, -2, -3]


def test_a_cache_of_states_gets_prompt_and_answer() -> None:
    cache = {(0,): "old"}

    class States(dict[Any, Any]):
        def __setitem__(self, key: list[int], value: Any) -> None:
            super().__setitem__(tuple(key), value)

    states = States(cache)
    list(complete(Speaker([b"a", b"b"], cache=states), request(), stream=True))
    assert states[(1, 2, 0, 1)] == "state"


def test_a_tokenizer_that_knows_whole_texts_only() -> None:
    data = "₹5é".encode()
    piece = ForeignPieces(lambda tokens: bytes(tokens).decode("utf-8", "replace").encode())
    assert b"".join(piece(byte) for byte in data) == data


@pytest.mark.parametrize(("max_tokens", "limit"), [(None, 60), (0, 60), (-1, 60), (7, 7), (60, 60), (99, 60)])
def test_an_answer_ends_with_the_context(max_tokens: int | None, limit: int) -> None:
    assert limit_of(40, max_tokens, 100) == limit


def test_prompts_that_cannot_be_answered() -> None:
    with pytest.raises(ConfigError, match="empty"):
        limit_of(0, 5, 100)
    with pytest.raises(ContextOverflow, match="exceed context window"):
        limit_of(100, 5, 100)


def test_the_best_of_a_row() -> None:
    row = np.array([0.0, 3.0, 1.0, 2.0], dtype=np.float32)
    assert best(row, 2) == [1, 3] and best(row, 0) == [] and best(row, 9) == [1, 3, 2, 0]
    np.testing.assert_allclose(np.exp(log_softmax(row)).sum(), 1.0, rtol=1e-6)
