"""Budgets per layer and per head through the Engine: sizes, prefill modes, states, and the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines import TEXT, answer
from restkv_local import ConfigError, Engine, EvictConfig
from restkv_local.config import CELL_PAD
from restkv_local.plan.allocation import share_out
from restkv_local.plan.memory import MemoryPlan, Probe, plan_memory

BUDGET, RESERVE = 96, 160
N_LAYER, N_HEAD_KV = 30, 3
PROBE = Probe(
    arch="llama",
    refusal="",
    n_layer=N_LAYER,
    n_layer_swa=0,
    n_layer_recurrent=0,
    n_head=9,
    n_head_kv=N_HEAD_KV,
    n_embd_head_k=64,
    n_embd_head_v=64,
    n_ctx_train=8192,
    bytes_per_cell=23040,
    bytes_window=69120,
)


def plan(n_ctx: int = 8192, probe: Probe = PROBE, **settings: Any) -> MemoryPlan:
    return plan_memory(Path("m.gguf"), probe, n_ctx, EvictConfig().with_(**settings), free_bytes=1 << 40)


# ---- plans -----------------------------------------------------------------------------------------


def test_totals_and_memory_of_a_plan() -> None:
    uniform = plan(budget=1024)
    pyramid = plan(budget=1024, allocation="pyramid")
    ada = plan(budget=1024, allocation="ada")
    assert uniform.shares.total == pyramid.shares.total == ada.shares.total == 1024 * N_LAYER * N_HEAD_KV
    assert sum(pyramid.shares.layers) == 1024 * N_LAYER and len(set(pyramid.shares.layers)) > 20
    assert pyramid.kv_bytes == uniform.kv_bytes
    assert ada.kv_bytes == uniform.kv_bytes + (ada.shares.rows - 1024) * PROBE.bytes_per_cell
    assert ada.shares.rows == 2048
    for made in (pyramid, ada):
        assert made.allocation in made.summary and str(made.shares.total) in made.summary


def test_one_kv_head_has_nothing_to_share() -> None:
    assert plan(allocation="ada", budget=512, probe=replace(PROBE, n_head_kv=1)).shares.rows == 512


@pytest.mark.parametrize("size", ["20MB", "47MB", "512MB"])
@pytest.mark.parametrize("reserve", [None, 200])
@pytest.mark.parametrize("allocation", ["uniform", "pyramid", "ada"])
def test_a_budget_in_bytes_holds_all_rows(allocation: str, reserve: int | None, size: str) -> None:
    made = plan(131072, budget=size, reserve=reserve, allocation=allocation)
    room = int(size[:-2]) * 10**6
    assert room - CELL_PAD * PROBE.bytes_per_cell < made.kv_bytes <= room


def test_exact_has_rows_for_the_context_in_every_layer() -> None:
    made = plan(budget=1024, allocation="pyramid", prefill="exact")
    assert made.shares.layers[-1] + made.capacity - made.budget == made.context


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"allocation": "ada", "method": "streamingllm"}, "keeps the same cells in every head"),
        *(
            ({"allocation": allocation, "method": method}, f"'{method}' needs one budget for all heads and layers")
            for method in ("tova", "h2o", "lacache", "fifo") for allocation in ("pyramid", "ada")
        ),
        ({"allocation": "pyramid", "method": "full"}, "it has no budget to share out"),
        ({"allocation": "heads"}, "allocation must be one of uniform, pyramid, ada"),
        ({"allocation": "pyramid", "beta": 0}, "beta must be a number from 1"),
        ({"allocation": "ada", "floor": 1.5}, "floor must be a number from 0.0 to 1.0"),
    ],
)
def test_refused_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EvictConfig().with_(**settings)


def test_a_pyramid_of_one_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least two layers"):
        plan(allocation="pyramid", probe=replace(PROBE, n_layer=1))


# ---- engine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefill", ["stream", "guided", "exact"])
@pytest.mark.parametrize("allocation", ["pyramid", "ada"])
def test_engine(smollm2: Path, allocation: str, prefill: str) -> None:
    evict = EvictConfig(budget=BUDGET, reserve=RESERVE).with_(allocation=allocation, prefill=prefill)
    engine = Engine(smollm2, n_threads=1, n_ctx=1024, evict=evict)
    try:
        tokens = engine.tokenize(TEXT.encode())[:600]
        engine.guide = "What does the baker sell?" if prefill == "guided" else None
        first = answer(engine, tokens, 8)
        report = engine.report()
        assert report.n_evictions >= 1 and report.positions == 607
        assert (report.allocation, report.budget_total) == (allocation, BUDGET * N_LAYER * N_HEAD_KV)
        assert report.kv_bytes == engine.plan.kv_bytes
        if prefill == "exact":
            held = [[len(engine.kept(layer, head)) for head in range(N_HEAD_KV)] for layer in range(N_LAYER)]
            assert sum(map(sum, held)) == report.budget_total + 7 * N_LAYER * N_HEAD_KV
        state = engine.save_state()
        expected = answer(engine, [*tokens, *first[:7]], 8)
        engine.reset()
        engine.load_state(state)
        assert answer(engine, [*tokens, *first[:7]], 8) == expected
        assert engine.report().reused_tokens > 600
        shares = share_out(evict, BUDGET, N_LAYER, N_HEAD_KV)
        assert all(len(engine.kept(layer, 0)) <= shares.rows + engine.plan.capacity - BUDGET for layer in (0, 29))
    finally:
        engine.close()
