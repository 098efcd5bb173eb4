"""Answers that end where their tokens do: at max_tokens or at the end of the context, inside a character too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models import write_random
from restkv_local.config import EvictConfig
from restkv_local.errors import Cancelled, ContextOverflow, LibraryError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

N_CTX = 256
N_BATCH = 64


def byte(value: int) -> int:
    """The token of a byte."""
    return 3 + value


PROMPT = [byte(value) for value in b"abcdefgh" * 40]
SIGN = "₹".encode()  # three bytes


@pytest.fixture(scope="module", params=["full", "restkv"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path: Path = write_random(tmp_path_factory.mktemp("end") / "model.gguf", "llama")
    evict = EvictConfig(method="full") if request.param == "full" else EvictConfig(budget=64, reserve=64)
    made = Engine(path, n_ctx=N_CTX, evict=evict, n_batch=N_BATCH, n_threads=1)
    yield made
    made.close()


def spell(text: bytes) -> list[Any]:
    """A logits processor under which the answer is these bytes, over and over."""
    said = 0

    def processor(_ids: Any, logits: Any) -> Any:
        nonlocal said
        logits[:] = -1e9
        logits[byte(text[said % len(text)])] = 0.0
        said += 1
        return logits

    return [processor]


def answer(engine: Engine, n_prompt: int, text: bytes, stream: bool, **options: Any) -> tuple[str, Any]:
    """Text and end of an answer; of a whole one with the number of its tokens."""
    options = {"temperature": 0.0, "logits_processor": spell(text), **options}
    made = engine.create_completion(PROMPT[:n_prompt], stream=stream, **options)
    if not stream:
        choice = made["choices"][0]
        assert engine.report().completion_tokens == made["usage"]["completion_tokens"]
        return choice["text"], choice["finish_reason"]
    choices = [chunk["choices"][0] for chunk in made]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("left", [1, 2, 3, 4, 5, 6])
def test_an_answer_to_the_end_of_the_context_is_not_lost(engine: Engine, left: int, stream: bool) -> None:
    n_prompt = N_CTX - left
    assert answer(engine, n_prompt, SIGN, stream, max_tokens=None) == ("₹" * (left // 3), "length")
    assert engine.report().completion_tokens == left
    assert engine.n_tokens <= N_CTX


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_max_tokens_is_kept_inside_a_character(engine: Engine, limit: int, stream: bool) -> None:
    said, why = answer(engine, 20, SIGN, stream, max_tokens=limit)
    assert (said, why) == ("₹" * (limit // 3), "length")
    assert engine.report().completion_tokens == limit


@pytest.mark.parametrize("stream", [False, True])
def test_a_character_that_never_ends_does_not_run_past_the_limit(engine: Engine, stream: bool) -> None:
    answer(engine, N_CTX - 7, SIGN[:1], stream, max_tokens=None)
    assert engine.report().completion_tokens == 7
    answer(engine, 20, "🦜".encode()[:3], stream, max_tokens=4)
    assert engine.report().completion_tokens == 4


def test_a_prompt_that_fills_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(ContextOverflow):
        engine.create_completion(PROMPT[:N_CTX], max_tokens=None)


def test_a_stopped_reading_reports_what_was_read(engine: Engine) -> None:
    engine.reset()

    def stop(done: int, total: int) -> None:
        if done:
            engine.cancel()

    engine.on_progress = stop
    try:
        with pytest.raises(Cancelled):
            engine.create_completion(PROMPT[:150], max_tokens=4)
    finally:
        engine.on_progress = None
    report = engine.report()
    assert (report.prompt_tokens, report.reused_tokens, report.read_tokens) == (150, 0, N_BATCH)
    assert engine.n_tokens == N_BATCH
    engine.create_completion(PROMPT[:150], max_tokens=4)
    report = engine.report()
    assert (report.prompt_tokens, report.reused_tokens, report.read_tokens) == (150, N_BATCH, 150 - N_BATCH)
    engine.create_completion(PROMPT[:150], max_tokens=1)
    assert engine.report().reused_tokens + engine.report().read_tokens == 150
