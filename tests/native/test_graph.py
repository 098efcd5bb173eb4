"""Evictions as ggml graphs on every device of the build: the sets and tokens of other ways.

On the CPU, and where the same code computes (RPC), to the last bit; elsewhere within the digits of docs/numerics.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import devices
import models
from evicting import Evicting
from graph_cases import DEVICES, assert_most_equal, each_device
from restkv_local import Engine, native
from restkv_local.config import EvictConfig
from restkv_local.plan.allocation import share_out

pytestmark = pytest.mark.usefixtures("library")

BUDGET, CAPACITY, CHUNK = 160, 384, 96
# Each with another attention: plain, norms of queries and keys, soft-cap, sliding window, one matrix for all, sinks.
FAMILIES = ("llama", "qwen3", "gemma2", "gemma3", "phi3", "gpt-oss")


@dataclass
class Run:
    """What an evicting context ended with."""

    logits: np.ndarray
    tokens: list[int]
    kept: list[np.ndarray]
    stats: native.Stats
    event: native.Event


def run(
    path: Path, config: EvictConfig, *, kv: str = "f16", guide: Sequence[int] = (), capacity: int = CAPACITY,
    **kwargs: Any,
) -> Run:  # fmt: skip
    """A prompt of 700 tokens and an answer of 24."""
    rng = np.random.default_rng(0)
    prompt = [int(x) for x in rng.choice(rng.integers(10, 320, 60), 700)]
    step = min(CHUNK, capacity - BUDGET)
    with Evicting(path, BUDGET, capacity, config, type_k=kv, type_v=kv, **kwargs) as context:
        for i in range(0, len(prompt), step):
            chunk = prompt[i : i + step]
            if guide and context.stats.n_free < len(chunk) + len(guide):
                context.decode(guide)
                context.evict(len(guide))
            logits = context.decode(chunk)
        tokens, rows = [int(logits[-1].argmax())], []
        for _ in range(24):
            rows.append(context.decode(tokens[-1:])[-1])
            tokens.append(int(rows[-1].argmax()))
        stats = context.stats
        kept = [context.kept(layer, head) for layer in layers(context) for head in range(stats.n_head_kv)]
        events = (native.Event * 256)()
        n = context.call(native.lib().restkv_get_events, events, 256)
        return Run(np.array(rows), tokens, kept, stats, events[n - 1])


def layers(context: Evicting) -> list[int]:
    """Model layers that evict."""
    return [i for i in range(8) if context.call(native.lib().restkv_kept, i, 0, None, 0) > 0]


def check_equal(path: Path, config: EvictConfig, device: str, **kwargs: Any) -> Run:
    """Sets equal, rows moved bit for bit: then the same logits as another way, with the same layers on the device."""
    other = run(path, config.with_(stages="fused" if device == "CPU" else "host"), device=device, **kwargs)
    graph = run(path, config.with_(stages="graph"), device=device, **kwargs)
    assert graph.stats.n_evictions == other.stats.n_evictions >= 2
    assert other.stats.n_layer_graph == other.event.n_layer_graph == 0
    if graph.stats.reason:
        # An operation is missing: said, and done through the host.
        assert not devices.computes_as_the_cpu(device)
        assert graph.stats.reason.startswith(f"{device} cannot run ".encode())
        assert graph.stats.n_layer_host == graph.event.n_layer_host == graph.event.n_layer
        np.testing.assert_array_equal(graph.logits, other.logits)
        pytest.skip(graph.stats.reason.decode())
    assert graph.stats.n_layer_graph == graph.event.n_layer_graph == graph.event.n_layer > 0
    assert graph.stats.devices == device.encode() and graph.stats.bytes_graph > 0
    if devices.computes_as_the_cpu(device):
        for mine, theirs in zip(graph.kept, other.kept, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert_most_equal(graph.kept, other.kept)
    if all(np.array_equal(mine, theirs) for mine, theirs in zip(graph.kept, other.kept, strict=True)):
        np.testing.assert_array_equal(graph.logits, other.logits)
    assert graph.tokens == other.tokens
    return graph


@each_device
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, device: str, tmp_path: Path) -> None:
    if family == "gpt-oss":
        devices.skip_gpt_oss(device)
    path = models.write_random(tmp_path / "model.gguf", family, seed=3)
    graph = check_equal(path, EvictConfig(), device)
    assert graph.tokens == run(path, EvictConfig()).tokens  # token by token those of the CPU


@each_device
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "snapkv", "pooling": "avgpool", "kernel": 5},
        {"method": "streamingllm"},
        {"method": "random", "seed": 5},
        {"method": "fifo"},
        {"rows": "inverted-ema", "alpha": 0.3},
        {"scale": 50},
        {"use_wo": False, "pooling": "maxpool", "kernel": 7},
        {"use_ema": False, "pooling": "none", "reduce": "max"},
        {"tau": 0.5, "alpha": None, "window": 16},
        {"rows": "last"},
        {"indicator": "attention"},
        {"indicator": "attention-value-norm"},
        {"indicator": "attention-value-norm", "rows": "max", "reduce": "max"},
        {"metric_mode": "before", "scale": 50},
        {"metric_mode": "before", "use_norm": True, "reduce": "max"},
        {"method": "tova"},
        {"method": "h2o"},
        {"method": "keydiff"},
        {"method": "knorm"},
    ],
    ids=str,
)
def test_methods_and_options(changes: dict[str, object], device: str, tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "llama", seed=5, n_head=6, n_head_kv=3)
    check_equal(path, EvictConfig().with_(**changes), device)


@each_device
def test_votes_of_h2o(device: str, tmp_path: Path) -> None:
    """With sinks; and counted where the keys are, which takes memory there that moves alone do not."""
    devices.skip_gpt_oss(device)
    path = models.write_random(tmp_path / "model.gguf", "gpt-oss", seed=6)
    votes = check_equal(path, EvictConfig(method="h2o"), device)
    moves = run(path, EvictConfig(method="fifo", stages="graph"), device=device)
    assert votes.stats.bytes_graph > 2 * moves.stats.bytes_graph


@each_device
def test_the_ladder_of_lacache(device: str, tmp_path: Path) -> None:
    # enough layers for a ladder of several rungs
    path = models.write_random(tmp_path / "model.gguf", "llama", seed=5, n_layer=6, n_ff=64)
    check_equal(path, EvictConfig(method="lacache", span=2, overlap=1), device)


@each_device
@pytest.mark.parametrize("allocation", ["pyramid", "ada"])
@pytest.mark.parametrize(
    ("changes", "capacity"),
    [
        ({}, CAPACITY),
        ({"scale": 20, "floor": 0.0}, 176),  # heads with fewer past cells than a drift is measured over
        ({"method": "snapkv"}, CAPACITY),
        ({"method": "keydiff"}, CAPACITY),
        ({"method": "knorm"}, CAPACITY),
        ({"method": "random"}, CAPACITY),
        ({"indicator": "attention-value-norm"}, 208),
    ],
    ids=str,
)
def test_shared_budgets(
    changes: dict[str, object], capacity: int, allocation: str, device: str, tmp_path: Path
) -> None:
    """Layers and heads that hold different numbers of cells, with rows that move to and fro."""
    path = models.write_random(tmp_path / "model.gguf", "llama", seed=8, n_layer=3, n_head=6, n_head_kv=3, n_ff=64)
    config = EvictConfig(allocation=allocation).with_(**changes)
    shares = share_out(config, BUDGET, 3, 3)
    graph = check_equal(path, config, device, shares=shares, capacity=capacity)
    held = {len(cells) for cells in graph.kept}
    assert len(held) > 2, "budgets differ"


@each_device
@pytest.mark.parametrize("allocation", ["pyramid", "ada"])
def test_shared_budgets_with_a_guide(allocation: str, device: str, tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "qwen3", seed=4, n_layer=3, n_head=6, n_head_kv=3, n_ff=64)
    config = EvictConfig(allocation=allocation, scale=50)
    check_equal(path, config, device, shares=share_out(config, BUDGET, 3, 3), guide=list(range(40, 60)))


@each_device
def test_a_pyramid_of_first_and_last_cells(device: str, tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "llama", seed=8, n_layer=3, n_ff=64)
    config = EvictConfig(method="streamingllm", allocation="pyramid")
    check_equal(path, config, device, shares=share_out(config, BUDGET, 3, 2))


@each_device
@pytest.mark.parametrize("kv", ["bf16", "q8_0", "q4_0"])
def test_cache_types(kv: str, device: str, tmp_path: Path) -> None:
    check_equal(models.write_random(tmp_path / "model.gguf", "llama", seed=7), EvictConfig(), device, kv=kv)


@each_device
def test_with_a_guide(device: str, tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "qwen3", seed=4)
    check_equal(path, EvictConfig(scale=50), device, guide=list(range(40, 60)))


@each_device
def test_partly_offloaded(device: str, tmp_path: Path) -> None:
    """Each layer is evicted where its cache lies."""
    if device == "CPU":
        pytest.skip("needs a device beside the CPU")
    path = models.write_random(tmp_path / "model.gguf", "llama", seed=9, n_layer=4, n_ff=64)
    for gpu_layers, on_device in ((3, 2), (1, 0)):  # the output counts as the last layer
        got = run(path, EvictConfig(), device=device, gpu_layers=gpu_layers)
        assert got.stats.n_layer_graph == got.event.n_layer_graph == on_device
        assert got.stats.n_layer_host == 0 and got.stats.n_layer == 4 and got.stats.n_evictions >= 2
        # With the same layers on the device the digits are the same; the CPU's differ, and so may a near tie.
        host = run(path, EvictConfig(stages="host"), device=device, gpu_layers=gpu_layers)
        assert_most_equal(got.kept, host.kept)
        assert got.tokens == host.tokens
        if devices.computes_as_the_cpu(device):
            assert got.tokens == run(path, EvictConfig()).tokens


@each_device
@pytest.mark.parametrize("allocation", ["uniform", "ada"])
def test_spread_over_devices(allocation: str, device: str, tmp_path: Path) -> None:
    """The layers of a model on two devices: each is evicted on its own, and both at a time."""
    others = [name for name in DEVICES if name not in ("CPU", device)]
    if device == "CPU" or not others:
        pytest.skip("needs two devices beside the CPU")
    path = models.write_random(tmp_path / "model.gguf", "llama", seed=9, n_layer=4, n_head=6, n_head_kv=3, n_ff=64)
    config = EvictConfig(allocation=allocation)
    shares = share_out(config, BUDGET, 4, 3) if allocation == "ada" else None
    got = run(path, config, device=f"{device},{others[0]}", shares=shares)
    assert got.stats.n_layer_graph == got.event.n_layer_graph == 4 and got.stats.n_evictions >= 2
    assert sorted(got.stats.devices.decode().split(",")) == sorted([device, others[0]])
    assert got.tokens == run(path, config, shares=shares).tokens


@each_device
def test_rows_that_are_no_whole_words_go_another_way(device: str, tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "qwen3", seed=6, n_head=2, n_head_kv=1, head_dim=96)
    got = run(path, EvictConfig(stages="graph"), kv="q8_0", device=device)
    assert got.stats.n_layer_graph == 0 and got.stats.n_layer_host == (0 if device == "CPU" else got.stats.n_layer)
    assert f"{device} cannot run rows of 96 values of q8_0".encode() in got.stats.reason


def test_through_the_host(tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "gpt-oss", seed=6)
    fused, host = run(path, EvictConfig()), run(path, EvictConfig(stages="host"))
    assert host.stats.n_layer_host == host.event.n_layer_host == host.event.n_layer > 0
    np.testing.assert_array_equal(host.logits, fused.logits)


def test_report_names_the_way(smollm2: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 60
    answers = []
    for stages, backend in (("fused", "cpu-fused"), ("graph", "graph (CPU)")):
        evict = EvictConfig(budget=128, reserve=128, stages=stages)
        engine = Engine(n_ctx=1024, evict=evict, n_gpu_layers=0, verbose=False)
        answers.append(engine(text, max_tokens=8, temperature=0.0)["choices"][0]["text"])
        report = engine.report()
        assert report.backend == backend and report.backend_reason is None and report.n_evictions > 1
        assert report.evictions[-1].layers_graph == (report.evictions[-1].layers if stages == "graph" else 0)
        engine.close()
    assert answers[0] == answers[1]


def test_engine_says_what_cannot_run_as_a_graph(tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "qwen3", seed=6, n_head=2, n_head_kv=1, head_dim=96)
    evict = EvictConfig(budget=128, reserve=128, stages="graph")
    engine = Engine(path, 1024, evict, kv_type="q8_0", n_threads=1)
    answer = list(itertools.islice(engine.generate([10 + i % 300 for i in range(400)], temp=0.0), 4))
    report = engine.report()
    engine.close()
    assert len(answer) == 4 and report.backend == "cpu-fused" and report.n_evictions > 0
    lacks = "CPU cannot run rows of 96 values of q8_0, which are no whole words, for an eviction"
    assert report.backend_reason == lacks and [notice for notice in report.notices if lacks in notice]
