"""Answers that recall, of the reference engine: which tokens and layers do, and what must never change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from recalling import BUDGET, RESERVE, WINDOW, engine, held, loader, read, tokens  # noqa: E402
from restkv_local.config import EvictConfig  # noqa: E402
from restkv_local.errors import ConfigError  # noqa: E402
from restkv_local.reference.model import ReferenceEngine  # noqa: E402
from restkv_local.reference.recall import likeness  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loader(tmp_path_factory.mktemp("models"))


def answering(model: Any, **settings: Any) -> ReferenceEngine:
    """An engine that has read a text, over an eviction."""
    made = engine(model)
    made.config = made.config.with_(archive="ram", **settings)
    read(made, tokens(250))
    return made


def chosen(of: ReferenceEngine) -> list[list[int]]:
    return [positions[:BUDGET] for layer in range(2) for positions in held(of, layer)]


def test_likeness_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0], [2.0, 0.0]])
    b = torch.tensor([[0.0, 2.0], [3.0, 4.0], [1.0, 0.0], [-1.0, 0.0]])
    assert likeness(a, b) == pytest.approx((0 + 1 + 0 - 1) / 4)
    assert likeness(a[:2], 7 * a[:2]) == pytest.approx(1.0)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_token_that_recalls_is_a_chunk_and_the_others_are_plain(family: str, model: Any) -> None:
    ours, theirs = answering(model(family), recall_every=3), answering(model(family))
    for token in tokens(RESERVE // 2, seed=5):
        recalls = (ours.n_tokens + 1) % 3 == 0
        before = chosen(ours)
        expected = theirs.decode([token], recall=recalls)[0]
        assert np.array_equal(ours.answer(token), expected) and held(ours) == held(theirs)
        assert recalls or chosen(ours) == before or ours.pos_exact == ours.n_tokens - 1
    assert ours.n_evictions == theirs.n_evictions > 2


def test_within_the_budget_no_bit_changes(model: Any) -> None:
    one = model("llama")
    ours, plain = engine(one), engine(one, archive=False)
    ours.config = ours.config.with_(archive="ram", recall_every=2, recall_below=0.9)
    for each in (ours, plain):
        read(each, tokens(40), recall=each is ours)
    for token in tokens(50, seed=2):
        assert np.array_equal(ours.answer(token), plain.answer(token))
    assert (ours.pos_exact, ours.archived) == (0, 0)


def test_a_layer_recalls_where_it_asks_for_something_else(model: Any) -> None:
    """Queries of the first layer depend on tokens alone: the cosines are computed by hand."""
    one = model("llama")
    below = 0.5
    own = answering(one, recall_below=below)
    said = [token for token in tokens(RESERVE // 4, seed=5) for _ in (0, 1)]
    text = tokens(250) + said
    q = one.layers[0].qkv(one.embed(torch.tensor(text)), torch.arange(len(text)))[0]
    last, kept = 249, []
    for token in said:
        before = chosen(own)[:2]
        own.answer(token)
        at = own.n_tokens - 1
        cosine = torch.cosine_similarity(q[:, at], q[:, last], dim=-1).mean()
        assert abs(float(cosine) - below) > 1e-4
        kept.append(bool(cosine >= below))
        assert (chosen(own)[:2] == before) == kept[-1]
        last = last if kept[-1] else at
    assert set(kept) == {True, False}


def test_after_an_eviction_every_layer_recalls(model: Any) -> None:
    """Else the last positions would be in no cell."""
    own = answering(model("llama"), recall_below=1e-6)
    own.answer(5)
    for seed in range(3):
        before, n_evictions = chosen(own), own.n_evictions
        while own.n_evictions == n_evictions:
            assert own._free > 0 or chosen(own)[0][-1] < own.pos_exact
            own.answer(5)
        assert all(a != b for a, b in zip(chosen(own), before, strict=True)), seed
        for positions in held(own):
            assert positions[-WINDOW - 1 :] == list(range(own.n_tokens - WINDOW - 1, own.n_tokens))


def test_refusals(model: Any) -> None:
    for settings in ({"recall_every": 1}, {"recall_below": 0.5}):
        with pytest.raises(ConfigError, match=f"{next(iter(settings))} recalls from an archive"):
            EvictConfig(**settings)
        config = EvictConfig(window=WINDOW, archive="ram", **settings)
        with pytest.raises(ConfigError, match="answers recall from an archive"):
            ReferenceEngine(model("llama"), BUDGET, BUDGET + RESERVE, config)
    for value in (-0.1, 1, 1.5, float("nan"), True, "0.5"):
        with pytest.raises(ConfigError, match="recall_below must be"):
            EvictConfig(archive="ram", recall_below=value)  # type: ignore[arg-type]
