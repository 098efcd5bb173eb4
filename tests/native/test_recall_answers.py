"""Answers that recall, in the library against the reference engine: the same layers do, and the same cells follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_parity import check_logits, prompt
from test_recall import BUDGET, CHUNK, Both

import models
import restkv_local.reference.model as reference_model
from evicting import Evicting
from restkv_local.config import EvictConfig

pytestmark = pytest.mark.usefixtures("library")

CONFIG = EvictConfig(window=16, archive="ram")
# Further from every cosine that is compared than rounding moves one.
MARGIN = 4e-3


class Answering(Both):
    """Both, and how many layers of each have recalled in answers."""

    def __init__(self, path: Path, config: EvictConfig, **options: Any) -> None:
        super().__init__(path, config, **options)
        self.config, self.n_layers = config, 0
        recall = self.reference._recall_layer

        def counted(*args: Any) -> None:
            self.n_layers += 1
            recall(*args)

        self.reference._recall_layer = counted  # type: ignore[method-assign]

    def answer(self, token: int, n: int = 12) -> None:
        """Every other token again, so that queries are alike; the others are the likeliest."""
        for i in range(n):
            before, theirs = self.native.archive.n_layers, self.n_layers
            ours = self.native.answer(token, self.config)
            expected = self.reference.answer(token)
            assert self.native.archive.n_layers - before == self.n_layers - theirs
            check_logits(ours, expected[None, :], self.check())
            token = int(ours[-1].argmax()) if i % 2 else token


@pytest.fixture(scope="module")
def load(folder: Path) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = models.write_random(folder / f"answers-{family}.gguf", family, seed=3)
        return made[family]

    return get


@pytest.fixture
def cosines(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every likeness that the reference has compared."""
    found: list[float] = []
    likeness = reference_model.likeness

    def kept(*args: Any) -> float:
        found.append(likeness(*args))
        return found[-1]

    monkeypatch.setattr(reference_model, "likeness", kept)
    return found


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_so_many_tokens(family: str, every: int, load: Callable[..., Path]) -> None:
    """Over evictions: where a token that recalls finds no cell the tail is dropped, else the method scores."""
    with Answering(load(family), CONFIG.with_(recall_every=every)) as both:
        both.read(prompt(320, 340))
        n_evictions = both.native.stats.n_evictions
        both.answer(11, 24)
        assert both.native.stats.n_evictions > n_evictions
        both.recall()
        both.answer(12, 4)


@pytest.mark.parametrize("every", [0, 5])
@pytest.mark.parametrize(("family", "below"), [("llama", 0.5), ("gemma3", 0.5), ("gpt-oss", 0.53)])
def test_where_a_layer_asks_for_something_else(
    family: str, below: float, every: int, load: Callable[..., Path], cosines: list[float]
) -> None:
    """Over evictions, cuts and questions."""
    with Answering(load(family), CONFIG.with_(recall_below=below, recall_every=every)) as both:
        both.read(prompt(320, 340))
        both.answer(11, 24)
        both.decode(prompt(320, 20, seed=9))
        both.recall(20)
        both.answer(12, 6)
        if not any(both.reference.model.spec.swa):
            both.cut(250)
            both.answer(13, 4)
    assert min(abs(cosine - below) for cosine in cosines) > MARGIN, "no tie, else choose another bound"
    assert {cosine < below for cosine in cosines} == {True, False}


def test_every_layer_recalls_where_nobody_has_chosen_its_cells(load: Callable[..., Path]) -> None:
    """After an eviction and after a cut, however little is asked for."""
    with Evicting(load("llama"), BUDGET, 192, CONFIG, archive="ram", n_ctx=1024) as native:

        def recalled(token: int) -> int:
            before = native.archive.n_layers
            native.read([token], below=1e-6)
            return int(native.archive.n_layers - before)

        for i in range(0, 256, CHUNK):
            native.read(prompt(320, 256)[i : i + CHUNK])
        native.drop_tail()
        assert [recalled(11) for _ in range(3)] == [2, 0, 0], "the same token is like itself"
        assert native.cut(200) and [recalled(11) for _ in range(3)] == [2, 0, 0]
        assert native.evict() and [recalled(11) for _ in range(3)] == [2, 0, 0]
        assert native.archive.n_recalls == native.archive.n_layers / 2
        n = native.stats.n_evictions
        seen = [recalled(11) for _ in range(100)]
        assert native.stats.n_evictions == n + 1 and seen.count(2) == 1 and set(seen) == {0, 2}


def test_a_bound_of_a_layer_that_recalls_each_time_is_none(load: Callable[..., Path]) -> None:
    rows = []
    for below in (0.0, 1.0):
        with Evicting(load("llama"), BUDGET, 192, CONFIG, archive="ram", n_ctx=1024) as native:
            for i in range(0, 256, CHUNK):
                native.read(prompt(320, 256)[i : i + CHUNK])
            rows.append(np.concatenate([native.read([token], below=below) for token in prompt(320, 30, seed=4)]))
    np.testing.assert_array_equal(*rows)
