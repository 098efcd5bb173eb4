"""Engines that many tests of the engine share: one on the embedded model, two on models with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from awaiting import ARCHIVED, CHAT, CONTEXT, GREEDY, OTHER, text_of
from engines import SMALL, TEMPLATE, TEXT, load
from models import write_random

if TYPE_CHECKING:
    from restkv_local import Engine


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[Engine]:
    """One small engine for many tests; each begins with an empty cache."""
    from restkv_local import Engine

    made = Engine(smollm2, n_threads=1, n_ctx=2048, evict=SMALL)
    yield made
    made.close()


@pytest.fixture
def small(engine: Engine) -> Iterator[Engine]:
    engine.reset()
    yield engine
    engine.on_progress = engine.on_notice = engine.on_evict = None
    engine.guide = None


@pytest.fixture(scope="module")
def tokens(engine: Engine) -> list[int]:
    made: list[int] = engine.tokenize(TEXT.encode())
    assert len(made) > 700
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def spm(folder: Path) -> Iterator[Engine]:
    """Begins every text with a token; has no template."""
    engine = load(write_random(folder / "spm.gguf", "llama"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def bpe(folder: Path) -> Iterator[Engine]:
    """Has no token that begins a text, and a template."""
    engine = load(write_random(folder / "bpe.gguf", "llama", pre="gpt-4o", template=TEMPLATE))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return write_random(folder / "model.gguf", "llama")


@pytest.fixture(scope="module")
def archiving(model: Path) -> Iterator[Engine]:
    """With an archive in memory."""
    made = load(model, n_ctx=2048, evict=SMALL.with_(archive="ram"))
    yield made
    made.close()


@pytest.fixture
def recalling(archiving: Engine) -> Iterator[Engine]:
    """The same with an empty cache."""
    archiving.reset()
    yield archiving
    archiving.on_progress = archiving.on_notice = archiving.on_evict = None
    archiving.guide = None


@pytest.fixture(scope="module")
def chatty(folder: Path) -> Path:
    """A model with a template."""
    return write_random(folder / "chatty.gguf", "llama", template=TEMPLATE)


@pytest.fixture(scope="module")
def answers(chatty: Path) -> tuple[str, str]:
    """What an engine that was never stopped says to CHAT and to OTHER, each on an empty cache."""
    with load(chatty, n_ctx=CONTEXT, evict=ARCHIVED) as engine:
        found = []
        for messages in (CHAT, OTHER):
            engine.reset()
            found.append(text_of(engine.create_chat_completion(messages, **GREEDY)))
        return found[0], found[1]
