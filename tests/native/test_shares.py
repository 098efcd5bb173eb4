"""Layers and heads with budgets of their own, inside llama_decode, against the reference engine in torch."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_parity import NEAR, SAME, check_logits, overlap, prompt

import models
from evicting import Evicting
from restkv_local.config import EvictConfig
from restkv_local.errors import ConfigError, ModelError
from restkv_local.plan.allocation import share_out
from restkv_local.reference.model import ReferenceEngine
from stock import Stock, llama_module

pytestmark = pytest.mark.usefixtures("library")

BUDGET, CAPACITY, CHUNK = 96, 192, 48


def open_native(path: Path, config: EvictConfig, budget: int = BUDGET, capacity: int = CAPACITY, *, n_layer: int,
                n_head_kv: int, **kwargs: Any) -> Evicting:  # fmt: skip
    return Evicting(path, budget, capacity, config, share_out(config, budget, n_layer, n_head_kv), **kwargs)


def check_sets(native: Evicting, reference: ReferenceEngine) -> float:
    """As test_parity.check_same, but only the first layer, whose inputs are the same, must agree exactly: a near tie
    goes either way, and how many cells a head gets hangs on all scores of its layer. Returns the logits' tolerance."""
    assert native.stats.n_cells == reference.cells
    spec, same = reference.model.spec, []
    full = [layer for layer in range(spec.n_layer) if not spec.swa[layer]]
    for layer in full:
        for head in range(spec.n_head_kv[layer]):
            ours, theirs = native.kept(layer, head), reference.kept(layer, head)
            assert np.all(np.diff(ours) > 0)
            same.append(overlap(ours, theirs))
            assert same[-1] == 1.0 or layer > 0
    assert min(same) >= 0.9 and np.mean(same) >= 0.97, same
    return SAME if min(same) == 1.0 else NEAR


def run_both(path: Path, config: EvictConfig, *, n_layer: int = 3, guide: int = 0, kv: str = "f16",
             seed: int = 0) -> None:  # fmt: skip
    tokens, question = prompt(320, 432, seed), prompt(320, 20, seed=9)
    reference = ReferenceEngine(path, BUDGET, CAPACITY, config, type_k=kv, type_v=kv)
    with open_native(path, config, type_k=kv, type_v=kv, n_layer=n_layer, n_head_kv=2) as native:
        for i in range(0, len(tokens), CHUNK):
            chunk = tokens[i : i + CHUNK]
            if guide and native.stats.n_free < len(chunk) + guide:
                native.decode(question[:guide])
                reference.decode(question[:guide])
                assert native.evict(guide) == reference.evict(guide) is True
                check_sets(native, reference)
            ours, theirs = native.decode(chunk), reference.decode(chunk)
            check_logits(ours, theirs, check_sets(native, reference))
        assert native.stats.n_evictions == reference.n_evictions >= 3
        token = int(ours[-1].argmax())
        answers = []
        for _ in range(12):
            answers.append((native.decode([token])[0], reference.decode([token])[0]))
            token = int(answers[-1][0].argmax())
        check_logits(*map(np.array, zip(*answers, strict=True)), check_sets(native, reference))


@pytest.mark.parametrize(
    "changes",
    [
        {"allocation": "pyramid"},
        {"allocation": "pyramid", "beta": 3, "scale": 40},
        {"allocation": "pyramid", "method": "snapkv", "pooling": "avgpool", "kernel": 5},
        {"allocation": "pyramid", "method": "streamingllm"},
        {"allocation": "pyramid", "method": "random"},
        {"allocation": "pyramid", "method": "keydiff"},
        {"allocation": "pyramid", "method": "knorm"},
        {"allocation": "ada"},
        {"allocation": "ada", "floor": 0.0, "reduce": "max"},
        {"allocation": "ada", "method": "snapkv", "pooling": "avgpool", "kernel": 5},
        {"allocation": "ada", "method": "random"},
        {"allocation": "ada", "method": "keydiff"},
        {"allocation": "ada", "method": "knorm"},
        {"allocation": "ada", "method": "restkv", "indicator": "attention-value-norm", "rows": "mean"},
    ],
    ids=str,
)
def test_against_the_reference(changes: dict[str, Any], folder: Path) -> None:
    path = models.write_random(folder / "llama.gguf", "llama", seed=3, n_layer=3)
    run_both(path, EvictConfig().with_(**changes))


@pytest.mark.parametrize("allocation", ["pyramid", "ada"])
def test_with_a_guide(allocation: str, folder: Path) -> None:
    path = models.write_random(folder / "guide.gguf", "qwen3", seed=4, n_layer=3)
    run_both(path, EvictConfig().with_(allocation=allocation), guide=20, seed=2)


@pytest.mark.parametrize("allocation", ["pyramid", "ada"])
def test_sliding_windows_beside(allocation: str, folder: Path) -> None:
    path = models.write_random(folder / "gemma3.gguf", "gemma3", seed=4, n_layer=4)
    run_both(path, EvictConfig().with_(allocation=allocation), n_layer=2)


@pytest.mark.parametrize("allocation", ["pyramid", "ada"])
def test_quantized_cache(allocation: str, folder: Path) -> None:
    path = models.write_random(folder / "q8_0.gguf", "llama", seed=7, n_layer=2)
    run_both(path, EvictConfig().with_(allocation=allocation), n_layer=2, kv="q8_0")


def rows_bytes(path: Path, cells: int) -> int:
    """Bytes of `cells` cells of one layer, as an ordinary evicting cache takes them."""
    with Evicting(path, BUDGET, CAPACITY, EvictConfig()) as plain:
        return plain.stats.bytes_kv // plain.stats.n_layer * cells // CAPACITY


def test_memory_is_that_of_the_plan(folder: Path) -> None:
    path = models.write_random(folder / "memory.gguf", "llama", seed=3, n_layer=4)
    for changes in ({"allocation": "pyramid"}, {"allocation": "ada"}):
        config = EvictConfig().with_(**changes)
        shares = share_out(config, BUDGET, 4, 2)
        with open_native(path, config, n_layer=4, n_head_kv=2) as native:
            reserve = CAPACITY - BUDGET
            budgets = shares.layers if config.allocation == "pyramid" else [shares.rows] * 4
            assert native.stats.bytes_kv == sum(rows_bytes(path, budget + reserve) for budget in budgets)
            for i in range(0, 640, CHUNK):
                native.decode(prompt(320, 640)[i : i + CHUNK])
            native.evict()
            kept = [[len(native.kept(layer, head)) for head in range(2)] for layer in range(4)]
            assert sum(map(sum, kept)) == shares.total == BUDGET * 8
            if config.allocation == "pyramid":
                assert [row[0] for row in kept] == list(shares.layers)
            else:
                assert max(map(max, kept)) <= shares.rows and len({n for row in kept for n in row}) > 1


@pytest.mark.parametrize("allocation", ["pyramid", "ada"])
def test_before_the_first_eviction_nothing_changes(allocation: str, folder: Path) -> None:
    path = models.write_random(folder / "same.gguf", "llama", seed=2, n_layer=4)
    tokens = prompt(320, 120)
    config = EvictConfig().with_(allocation=allocation)
    with Stock(path, n_ctx=512) as stock, open_native(path, config, 96, 256, n_layer=4, n_head_kv=2) as native:
        for i in range(0, 120, 40):
            np.testing.assert_allclose(native.decode(tokens[i : i + 40]), stock.decode(tokens[i : i + 40]), atol=2e-3)
        assert native.stats.n_evictions == 0


@pytest.mark.parametrize("allocation", ["pyramid", "ada"])
def test_state_in_the_middle(allocation: str, folder: Path) -> None:
    """A state of another context gives the same cells and logits; one of another allocation is refused."""
    path = models.write_random(folder / "state.gguf", "llama", seed=2, n_layer=4)
    tokens = prompt(320, 400)
    config = EvictConfig().with_(allocation=allocation)
    llama = llama_module()
    for n_read in (60, 300):  # before the first eviction, and after some
        with (
            open_native(path, config, n_layer=4, n_head_kv=2) as first,
            open_native(path, config, n_layer=4, n_head_kv=2) as second,
            Evicting(path, BUDGET, CAPACITY, EvictConfig()) as other,
        ):
            for i in range(0, n_read, 30):
                first.decode(tokens[i : i + 30])
            for i in range(0, 150, 30):
                second.decode(tokens[i : i + 30])  # what was there before is gone
            size = first.call(llama.llama_state_get_size)
            data = (ctypes.c_uint8 * size)()
            assert first.call(llama.llama_state_get_data, data, size) == size
            assert second.call(llama.llama_state_set_data, data, size) == size
            assert other.call(llama.llama_state_set_data, data, size) == 0
            second._n = second.stats.pos_next
            assert second._n == n_read
            for layer in range(4):
                for head in range(2):
                    np.testing.assert_array_equal(second.kept(layer, head), first.kept(layer, head))
            for i in range(n_read, n_read + 90, 30):
                np.testing.assert_array_equal(second.decode(tokens[i : i + 30]), first.decode(tokens[i : i + 30]))
            assert second.stats.n_evictions == first.stats.n_evictions


@pytest.mark.parametrize("allocation", ["pyramid", "ada"])
@pytest.mark.parametrize("stages", ["graph", "host"])
def test_other_stages(allocation: str, stages: str, folder: Path) -> None:
    """As graphs and through a copy on the host the same."""
    path = models.write_random(folder / "stages.gguf", "llama", seed=2, n_layer=4)
    tokens = prompt(320, 400)
    config = EvictConfig().with_(allocation=allocation)
    with (
        open_native(path, config, n_layer=4, n_head_kv=2) as fused,
        open_native(path, config.with_(stages=stages), n_layer=4, n_head_kv=2) as other,
    ):
        for i in range(0, 400, CHUNK):
            chunk = tokens[i : i + CHUNK]
            np.testing.assert_array_equal(other.decode(chunk), fused.decode(chunk))
        assert fused.stats.n_evictions >= 3
        ways = (other.stats.n_layer_graph, other.stats.n_layer_host)
        assert ways == ((4, 0) if stages == "graph" else (0, 4)) and not other.stats.reason


@pytest.mark.parametrize("method", ["tova", "h2o", "lacache", "fifo", "streamingllm"])
def test_the_library_refuses_what_needs_one_budget(method: str, folder: Path) -> None:
    """EvictConfig refuses these before; the library does so too."""
    path = models.write_random(folder / "llama.gguf", "llama", seed=3, n_layer=3)
    for allocation in ("pyramid", "ada"):
        config = EvictConfig(method=method)
        shares = share_out(config.with_(method="restkv", allocation=allocation), BUDGET, 3, 2)
        object.__setattr__(config, "allocation", allocation)
        if method == "streamingllm" and allocation == "pyramid":
            with Evicting(path, BUDGET, CAPACITY, config, shares):
                continue
        with pytest.raises(ConfigError, match=f"method '{method}' .*: use allocation 'uniform'"):
            Evicting(path, BUDGET, CAPACITY, config, shares)


def test_heads_with_attention_sinks_are_refused(folder: Path) -> None:
    path = models.write_random(folder / "sinks.gguf", "gpt-oss", seed=2)
    with pytest.raises((ModelError, RuntimeError, ValueError)):
        open_native(path, EvictConfig(allocation="ada"), n_layer=2, n_head_kv=2)
