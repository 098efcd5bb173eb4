"""Readings of restkv-eval: logits of many tokens, and states that methods share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval_models import tiny  # noqa: F401
from restkv_local.config import METHODS, EvictConfig
from restkv_local.errors import EvictionError
from restkv_local.eval.grid import Setting, StateKind, state_kind
from restkv_local.eval.reading import Reader, States


def _engine(model: Path, **evict: Any) -> Any:
    from restkv_local import Engine

    config = EvictConfig(**({"budget": 64, "reserve": 128} | evict))
    return Engine(str(model), 512, config, n_threads=1, n_batch=100)


def test_logits_of_many_tokens_are_those_of_one_after_the_other(tiny: Path) -> None:  # noqa: F811
    engine = _engine(tiny)
    try:
        tokens = [3 + (7 * i) % 250 for i in range(300)]
        engine.eval(tokens[:150])
        found = engine.read_logits(tokens[150:])
        kept, n_evictions = engine.kept(0, 0), engine.report().n_evictions
        engine.reset()
        engine.eval(tokens[:150])
        for i, token in enumerate(tokens[150:]):
            engine.eval([token])
            assert np.abs(engine.scores[engine.n_tokens - 1] - found[i]).max() < 2e-2
        assert n_evictions > 0 and (engine.kept(0, 0) == kept).all()
        assert engine.read_logits([]).shape == (0, engine.n_vocab())
        engine.n_tokens = 10
        with pytest.raises(EvictionError, match="start again with reset"):
            engine.read_logits([5])
    finally:
        engine.close()


def _counted(load: Callable[[Any], None], loaded: list[str]) -> Callable[[Any], None]:
    def counted(state: Any) -> None:
        load(state)
        loaded.append("loaded")

    return counted


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_a_reading_that_methods_share_changes_nothing(
    tiny: Path,  # noqa: F811
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = method if method == "h2o" else "restkv"
    prompt = [3 + (11 * i * i) % 250 for i in range(320)]
    states = States(1 << 30, StateKind.serves)
    kinds: list[StateKind] = []
    kept = {}
    loaded: list[str] = []
    # So near to the context's end the ring of h2o hangs on the budget; what else differs must not matter.
    other = 80 if method == "h2o" else 64
    for name, shared, budget in ((first, True, other), (method, True, 80), (method, False, 80)):
        engine = _engine(tiny, method=name, prefill="exact", budget=budget, tau=1.0 if kinds else 2.0)
        try:
            setting = Setting(name, engine.evict, "f16")
            kinds.append(state_kind(engine, setting, ""))
            monkeypatch.setattr(engine, "load_state", _counted(engine.load_state, loaded))
            Reader(engine, states if shared else None, kinds[-1]).read(prompt, 310)
            assert engine.cells == budget
            kept[shared, name] = engine.kept(1, 0), np.asarray(engine.scores[engine.n_tokens - 1])
        finally:
            engine.close()
    # else the test would compare two readings of the same kind
    assert kinds[0].serves(kinds[1]) and loaded == ["loaded"]
    if method in ("tova", "fifo"):
        assert not kinds[1].serves(kinds[0])  # they keep fewer queries, or none
    assert (kept[True, method][0] == kept[False, method][0]).all()
    assert (kept[True, method][1] == kept[False, method][1]).all()
