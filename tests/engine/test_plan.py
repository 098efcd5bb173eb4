"""What fits and what is refused, from the facts of a model alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.config import CELL_PAD, GUIDE_MAX, EvictConfig, parse_size
from restkv_local.errors import ConfigError, ModelError
from restkv_local.plan import machine
from restkv_local.plan.memory import VERIFIED, MemoryPlan, Probe, plan_memory

PATH = Path("model.gguf")
PROBE = Probe(
    arch="llama",
    refusal="",
    n_layer=30,
    n_layer_swa=0,
    n_layer_recurrent=0,
    n_head=9,
    n_head_kv=3,
    n_embd_head_k=64,
    n_embd_head_v=64,
    n_ctx_train=8192,
    bytes_per_cell=30 * 3 * 64 * 2 * 2,
    bytes_window=30 * 9 * 64 * 4,
)
PLENTY = 1 << 50


def plan(
    n_ctx: int = 131072, n_batch: int = 512, probe: Probe = PROBE, free: int = PLENTY, **evict: Any
) -> MemoryPlan:
    return plan_memory(PATH, probe, n_ctx, EvictConfig().with_(**evict), n_batch=n_batch, free_bytes=free)


def test_default() -> None:
    p = plan()
    assert (p.budget, p.reserve, p.capacity, p.window, p.n_batch) == (1024, 1024, 2048, 32, 512)
    assert p.kv_bytes == 2048 * PROBE.bytes_per_cell
    assert p.ring_bytes == 33 * PROBE.bytes_window
    assert p.evicts


@pytest.mark.parametrize("budget", [34, 64, 100, 256, 1000, 1024, 4096, 30000])
def test_default_reserve_rounds_the_capacity(budget: int) -> None:
    p = plan(budget=budget)
    assert p.budget == budget
    assert p.capacity == budget + p.reserve
    assert p.capacity % CELL_PAD == 0
    assert p.n_batch == 512, "room for a whole batch"


def test_given_reserve_is_taken_as_it_is() -> None:
    p = plan(budget=100, reserve=7)
    assert (p.capacity, p.n_batch) == (107, 7)


def test_bytes_are_those_of_the_whole_cache() -> None:
    p = plan(budget="50MB")
    assert p.kv_bytes <= 50_000_000 < p.kv_bytes + CELL_PAD * PROBE.bytes_per_cell
    assert p.budget >= p.reserve
    exact = plan(budget=f"{1500 * PROBE.bytes_per_cell}B", reserve=500)
    assert (exact.budget, exact.capacity) == (1000, 1500)


@pytest.mark.parametrize("reserve", [None, 1, 600])
def test_smallest_bytes_that_work_are_named(reserve: int | None) -> None:
    with pytest.raises(ConfigError, match="smallest budget that works") as error:
        plan(budget="1kB", reserve=reserve)
    smallest = str(error.value).rsplit(" ", 1)[1]
    assert plan(budget=smallest, reserve=reserve).budget >= EvictConfig().budget_min
    with pytest.raises(ConfigError):
        plan(budget=f"{parse_size(smallest) - 1}B", reserve=reserve)


def test_budgets_below_the_window_are_refused_with_the_smallest() -> None:
    with pytest.raises(ConfigError, match="from 34 to"):
        EvictConfig(budget=33)
    assert plan(budget=34).budget == 34
    with pytest.raises(ConfigError, match="reserve"):
        EvictConfig(reserve=0)


def test_short_context_shrinks_the_cache() -> None:
    p = plan(n_ctx=1000, budget=4096)
    assert (p.context, p.capacity) == (1024, 1024)
    assert not p.evicts
    assert p.budget + p.reserve == p.capacity and p.reserve >= 1
    assert p.n_batch == 512, "nothing is evicted: the reserve does not limit the batch"
    assert plan(n_ctx=2048).capacity == 2048 and not plan(n_ctx=2048).evicts
    assert plan(n_ctx=2304).evicts


def test_context_zero_is_the_models_own() -> None:
    assert plan(n_ctx=0).context == 8192


def test_guided_leaves_room_for_batch_and_guide() -> None:
    p = plan(prefill="guided", budget=64, reserve=300)
    assert p.guide == GUIDE_MAX and p.n_batch + p.guide <= p.reserve
    small = plan(prefill="guided", budget=64, reserve=65)
    assert (small.guide, small.n_batch) == (32, 33)
    with pytest.raises(ConfigError, match="reserve to at least 64"):
        plan(prefill="guided", budget=64, reserve=63)


def test_guide_of_a_model_with_sliding_windows_is_one_batch() -> None:
    swa = replace(PROBE, n_layer_swa=5)
    assert plan(probe=swa, prefill="guided", n_batch=40).guide == 40
    with pytest.raises(ConfigError, match="n_batch to at least 32"):
        plan(probe=swa, prefill="guided", n_batch=31)


def test_exact_has_cells_for_the_context() -> None:
    p = plan(n_ctx=16384, prefill="exact", reserve=10)
    assert p.capacity == 16384 and p.limit == 1034 and p.n_batch == 512
    assert p.kv_bytes == 16384 * PROBE.bytes_per_cell


@pytest.mark.parametrize("setting", [{"method": "full"}, {"prefill": "exact"}])
def test_what_does_not_fit_is_refused_with_what_does(setting: dict[str, Any]) -> None:
    free = 1 << 30
    with pytest.raises(ConfigError, match=r"largest n_ctx that fits is \d+") as error:
        plan(free=free, **setting)
    largest = int(str(error.value).split("fits is ")[1].split(",")[0])
    assert plan(n_ctx=largest, free=free, **setting).context == largest
    with pytest.raises(ConfigError):
        plan(n_ctx=largest + CELL_PAD, free=free, **setting)
    assert plan(free=free).context == 131072, "stream fits"


def test_too_large_a_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="budget and reserve together"):
        plan(budget=100_000, free=1 << 30)


def test_what_methods_take_beside_the_cache() -> None:
    per_row = PROBE.bytes_window
    rows = {"restkv": 33, "snapkv": 33, "tova": 2, "h2o": 513, "lacache": 0, "fifo": 0, "keydiff": 0, "knorm": 0}
    assert {method: plan(method=method).ring_bytes // per_row for method in rows} == rows
    assert plan(method="h2o").sums_bytes == 30 * 3 * 2048 * 4 and plan().sums_bytes == 0
    assert plan(indicator="attention").wo_bytes == 0 < plan().wo_bytes
    assert plan(method="tova").window == 1


def test_a_ladder_that_does_not_work_is_refused() -> None:
    assert plan(method="lacache").window == 32
    with pytest.raises(ConfigError, match="budget of at least 38"):
        plan(method="lacache", budget=37)
    with pytest.raises(ConfigError, match="over 1 layers"):
        plan(method="lacache", probe=replace(PROBE, n_layer=1))
    with pytest.raises(ConfigError, match="span below that"):
        plan(method="lacache", span=30)


def test_full_uses_no_ring_and_every_position() -> None:
    p = plan(n_ctx=4096, method="full")
    assert (p.capacity, p.ring_bytes, p.wo_bytes, p.evicts) == (4096, 0, 0, False)


def test_models_that_cannot_be_evicted() -> None:
    mla = replace(PROBE, arch="deepseek2", refusal="it compresses its cache (MLA)")
    with pytest.raises(ModelError, match="MLA.*method='full'"):
        plan(probe=mla, unverified=True)
    assert plan(probe=mla, method="full", n_ctx=4096).method == "full"
    other = replace(PROBE, arch="olmo2")
    with pytest.raises(ModelError, match="not verified.*'olmo2'.*unverified=True"):
        plan(probe=other)
    assert plan(probe=other, unverified=True).arch == "olmo2"
    for arch in VERIFIED:
        assert plan(probe=replace(PROBE, arch=arch)).evicts
    with pytest.raises(ConfigError, match="recurrent"):
        plan(probe=replace(PROBE, n_layer_recurrent=3), prefill="guided")


def test_streamingllm_keeps_a_window_of_the_rest() -> None:
    p = plan(method="streamingllm", sinks=4)
    assert p.window == p.budget - 4


@pytest.mark.parametrize("kv_type", ["f32", ("f16",), ("f16", "q5_1"), ""])
def test_unknown_cache_types(kv_type: object) -> None:
    with pytest.raises(ConfigError, match="kv_type"):
        plan_memory(PATH, PROBE, kv_type=kv_type, free_bytes=PLENTY)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_ctx", [-1, 1 << 30])
def test_impossible_contexts(n_ctx: int) -> None:
    with pytest.raises(ConfigError, match="n_ctx"):
        plan(n_ctx=n_ctx)


@given(
    n_ctx=st.integers(1, 1 << 20),
    budget=st.one_of(st.integers(34, 1 << 17), st.integers(6_000_000, 1 << 34).map(lambda n: f"{n}B")),
    reserve=st.one_of(st.none(), st.integers(130, 4096)),
    prefill=st.sampled_from(["stream", "exact", "guided"]),
    n_batch=st.integers(1, 4096),
)
def test_every_plan_can_run(
    n_ctx: int, budget: int | str, reserve: int | None, prefill: str, n_batch: int
) -> None:
    """After an eviction a batch, and a guide, fit the free cells; sizes agree with each other."""
    try:
        p = plan(n_ctx=n_ctx, n_batch=n_batch, budget=budget, reserve=reserve, prefill=prefill)
    except ConfigError as error:
        assert "smallest budget" in str(error)
        return
    assert p.window < p.budget < p.budget + p.reserve == p.limit <= p.context
    assert p.capacity == (p.context if prefill == "exact" else p.limit)
    assert 1 <= p.n_batch <= n_batch
    if p.evicts and prefill != "exact":
        assert p.n_batch + p.guide <= p.reserve
    if isinstance(budget, str) and prefill != "exact":
        assert p.kv_bytes <= parse_size(budget)


def test_sizes_for_people() -> None:
    assert [machine.size(n) for n in (12, 1500, 2_500_000, 3e9)] == ["12 B", "1.5 kB", "2.5 MB", "3.0 GB"]
    free = machine.free_memory()
    assert free is None or free > 1 << 20
