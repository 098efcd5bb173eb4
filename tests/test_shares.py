"""Layers and heads with budgets of their own, inside llama_decode, against the reference engine in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from evicting import Evicting
from restkv_local.allocation import share_out
from restkv_local.config import EvictConfig
from restkv_local.errors import ModelError
from restkv_local.reference.model import ReferenceEngine
from stock import Stock, llama_module
from test_parity import check_logits, check_same, prompt

BUDGET, CAPACITY, CHUNK = 96, 192, 48


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    llama_module()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def open_native(path: Path, config: EvictConfig, budget: int = BUDGET, capacity: int = CAPACITY, *, n_layer: int,
                n_head_kv: int, **kwargs: Any) -> Evicting:  # fmt: skip
    return Evicting(path, budget, capacity, config, share_out(config, budget, n_layer, n_head_kv), **kwargs)


def run_both(path: Path, config: EvictConfig, *, n_layer: int = 4, n_head_kv: int = 2, guide: int = 0,
             kv: str = "f16") -> None:  # fmt: skip
    tokens, question = prompt(320, 640), prompt(320, 20, seed=9)
    reference = ReferenceEngine(path, BUDGET, CAPACITY, config, type_k=kv, type_v=kv)
    shape = {"n_layer": n_layer, "n_head_kv": n_head_kv}
    with open_native(path, config, type_k=kv, type_v=kv, **shape) as native:
        for i in range(0, len(tokens), CHUNK):
            chunk = tokens[i : i + CHUNK]
            if guide and native.stats.n_free < len(chunk) + guide:
                native.decode(question[:guide])
                reference.decode(question[:guide])
                assert native.evict(guide) == reference.evict(guide) is True
                check_same(native, reference)
            ours, theirs = native.decode(chunk), reference.decode(chunk)
            check_logits(ours, theirs, check_same(native, reference))
        assert native.stats.n_evictions == reference.n_evictions >= 3
        token = int(ours[-1].argmax())
        ours, theirs = [], []
        for _ in range(16):
            ours.append(native.decode([token])[0])
            theirs.append(reference.decode([token])[0])
            token = int(ours[-1].argmax())
        check_logits(np.array(ours), np.array(theirs), check_same(native, reference))


ALLOCATIONS = [
    {"allocation": "pyramid"},
    {"allocation": "pyramid", "beta": 3},
    {"allocation": "ada"},
    {"allocation": "ada", "floor": 0.0},
]
METHODS = [{}, {"method": "snapkv", "pooling": "avgpool", "kernel": 5}]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=str)
def test_against_the_reference(allocation: dict[str, Any], method: dict[str, Any], folder: Path) -> None:
    path = models.write_random(folder / "llama.gguf", "llama", seed=3, n_layer=4)
    run_both(path, EvictConfig().with_(**allocation, **method))


@pytest.mark.parametrize("allocation", ["pyramid", "ada"])
def test_with_a_guide(allocation: str, folder: Path) -> None:
    path = models.write_random(folder / "guide.gguf", "qwen3", seed=4, n_layer=4)
    run_both(path, EvictConfig().with_(allocation=allocation), guide=20)


def test_other_methods(folder: Path) -> None:
    path = models.write_random(folder / "other.gguf", "llama", seed=5, n_layer=4)
    for changes in ({"method": "streamingllm", "allocation": "pyramid"}, {"method": "random", "allocation": "pyramid"},
                    {"method": "random", "allocation": "ada"}, {"scale": 40, "allocation": "pyramid"}):  # fmt: skip
        run_both(path, EvictConfig().with_(**changes))


@pytest.mark.parametrize("kv", ["q8_0", "bf16"])
@pytest.mark.parametrize("allocation", ["pyramid", "ada"])
def test_cache_types(allocation: str, kv: str, folder: Path) -> None:
    path = models.write_random(folder / f"{kv}.gguf", "llama", seed=7, n_layer=2)
    run_both(path, EvictConfig().with_(allocation=allocation), n_layer=2, kv=kv)


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
            want = [b + reserve for b in shares.layers] if config.allocation == "pyramid" else [shares.rows + reserve] * 4
            assert native.stats.bytes_kv == sum(rows_bytes(path, rows) for rows in want)
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


def test_heads_with_attention_sinks_are_refused(folder: Path) -> None:
    path = models.write_random(folder / "sinks.gguf", "gpt-oss", seed=2)
    with pytest.raises((ModelError, RuntimeError, ValueError)):
        open_native(path, EvictConfig(allocation="ada"), n_layer=2, n_head_kv=2)
