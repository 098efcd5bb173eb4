"""Models with sliding windows: a text that leaves the cached one earlier is answered as if it were the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import write_random
from restkv_local.config import EvictConfig
from restkv_local.errors import LibraryError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

from restkv_local.eval.fidelity import predictions
from restkv_local.eval.reading import Reader

N_SWA = 32
N_UBATCH = 64  # the window's own cache has 256 cells: the next multiple of window + ubatch
SHARED = 120


@pytest.fixture(scope="module", params=["gemma3", "gemma2", "gpt-oss"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("swa") / f"{request.param}.gguf"
    return write_random(path, request.param, n_swa=N_SWA, n_layer=4)


@pytest.fixture(scope="module")
def full(model: Path) -> Iterator[Engine]:
    made = Engine(model, n_ctx=1024, evict=EvictConfig(method="full"), n_batch=N_UBATCH, n_ubatch=N_UBATCH, n_threads=1)
    yield made
    made.close()


def words(n: int, seed: int) -> list[int]:
    """Token ids: bytes of a text that nobody wrote."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, 259, n)]


BEGINNING = words(SHARED, 0)
LONG = BEGINNING + words(500, 1)
SHORT = BEGINNING[:100] + words(20, 2)


def logits_after(engine: Engine, prompt: Sequence[int]) -> Any:
    list(islice(engine.generate(list(prompt), temp=0.0), 1))
    return np.array(engine.scores[-1, :])


def kl(p: Any, q: Any) -> float:
    """KL divergence of two rows of logits, in nats."""
    p, q = (row.astype(np.float64) - np.logaddexp.reduce(row.astype(np.float64)) for row in (p, q))
    return float((np.exp(p) * (p - q)).sum())


def test_a_short_text_after_a_longer_one_is_answered_as_a_fresh_one(full: Engine) -> None:
    full.reset()
    fresh = logits_after(full, SHORT)
    full.reset()
    notices: list[str] = []
    full.on_notice = notices.append
    logits_after(full, LONG)
    np.testing.assert_array_equal(logits_after(full, SHORT), fresh)
    full.on_notice = None
    report = full.report()
    assert report.reused_tokens == 0
    assert notices == [report.reevaluated]
    assert "the sliding window before position 100 has been overwritten" in notices[0]
    assert f"100 of {len(LONG)} positions" in notices[0] and "evicted" not in notices[0]


def test_what_the_window_still_holds_is_used_again(full: Engine) -> None:
    full.reset()
    fresh = logits_after(full, SHORT)
    full.reset()
    logits_after(full, LONG[:180])  # fewer tokens than the window's cache has cells
    again = logits_after(full, SHORT)
    assert full.report().reused_tokens == 100 and full.report().reevaluated is None
    assert kl(fresh, again) < 1e-5, "other batches, the same text"


def test_one_prompt_again_and_a_cut_by_hand(full: Engine) -> None:
    full.reset()
    full.eval(SHORT)
    fresh = np.array(full.scores[-1, :])
    full.reset()
    full.eval(LONG)
    full.n_tokens = 100
    full.eval(SHORT[100:])
    assert full.n_tokens == full.cells == len(SHORT)
    assert full.report().reevaluated is not None and "sliding window" in full.report().reevaluated
    # the text before is read in other batches than at first
    assert kl(fresh, np.array(full.scores[-1, :])) < 1e-5


def test_the_yardstick_of_the_evaluation_does_not_know_what_was_read_before(full: Engine) -> None:
    following = words(12, 3)

    def figures(reader: Reader, prompt: list[int]) -> Any:
        reader.read(prompt, SHARED)
        return predictions(full, following)

    full.reset()
    fresh = [figures(Reader(full), prompt) for prompt in (SHORT, LONG)]
    reader = Reader(full)
    for prompt, expected in ((LONG, fresh[1]), (SHORT, fresh[0]), (LONG, fresh[1]), (SHORT, fresh[0])):
        # a restored window lies in other cells: sums come in another order
        assert max(map(kl, expected, figures(reader, prompt))) < 1e-5
    # and when something else goes between the prompts
    logits_after(full, LONG)
    logits_after(full, SHORT)
    np.testing.assert_array_equal(predictions(full, following), fresh[0])


def test_chat_after_clear(full: Engine) -> None:
    """What `restkv-chat --method full` does: a document and a question, /clear, the same question alone."""
    question = "Say what it is."
    document = [{"role": "user", "content": "The keeper writes the weather into a blue book. " * 14 + question}]
    alone = [{"role": "user", "content": question}]
    settings: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "logit_bias": {2: -100.0}}
    full.reset()
    full.create_chat_completion(alone, **settings)
    fresh = np.array(full.scores[-1, :])
    full.reset()
    full.create_chat_completion(document, **settings)
    assert full.n_tokens > 512
    full.create_chat_completion(alone, **settings)
    np.testing.assert_array_equal(np.array(full.scores[-1, :]), fresh)


def test_an_evicting_cache_gives_the_true_reason(model: Path) -> None:
    evict = EvictConfig(budget=128, reserve=512)
    made = Engine(model, n_ctx=1024, evict=evict, n_batch=N_UBATCH, n_ubatch=N_UBATCH, n_threads=1)
    logits_after(made, LONG)
    assert made.report().n_evictions == 0
    logits_after(made, SHORT)
    said = made.report().reevaluated
    assert said is not None and "the sliding window before position 100 has been overwritten" in said
    logits_after(made, LONG + words(200, 4))
    assert made.report().n_evictions == 1
    logits_after(made, SHORT)
    said = made.report().reevaluated
    assert said is not None and "cells before position 640 have been evicted" in said
    made.close()
