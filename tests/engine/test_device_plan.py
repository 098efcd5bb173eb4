"""Layers on devices: how they are shared out, what fits, and that a plan is what is then allocated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_plan import PROBE, plan

import devices
import models
from evicting import Evicting
from restkv_local import Engine
from restkv_local.check.devices import Device
from restkv_local.config import DEVICE_MARGIN, EvictConfig
from restkv_local.engine.construct import probe_model
from restkv_local.engine.facts import memory_of
from restkv_local.errors import ConfigError, ModelError
from restkv_local.models.shapes import SHAPES, bytes_per_cell
from restkv_local.plan import fitting
from restkv_local.plan.devices import (
    HOST,
    GraphMemory,
    Weights,
    layers_that_fit,
    plan_devices,
    read_weights,
    split_layers,
)
from restkv_local.plan.memory import MemoryPlan, Probe

GIB = 1 << 30
WEIGHTS = Weights((100_000_000,) * 30, 200_000_000)


def gpu(index: int, free: int, kind: str = "gpu") -> Device:
    return Device(f"GPU{index}", "a GPU", "CUDA", kind, "", False, free, 2 * free)


@pytest.mark.parametrize("options", [{}, {"main_gpu": 0, "tensor_split": None}])
def test_what_is_asked_of_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.setattr(fitting, "devices", lambda: [gpu(0, GIB, "cpu"), gpu(1, GIB, "accel")])
    path = Path("model.gguf")
    assert fitting.fit(path, plan(), 0, options) == (0, "")
    layers, said = fitting.fit(path, plan(), -1, options)
    assert layers == 0 and said.endswith("everything runs on the CPU")
    for gpu_layers, more in ((5, {}), (0, {"main_gpu": 1}), (-1, {"tensor_split": [1.0, 1.0]})):
        with pytest.raises(ConfigError, match="there is no GPU here"):
            fitting.fit(path, plan(), gpu_layers, {**options, **more})


def test_a_gpu_in_the_memory_of_the_host_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "devices", lambda: [gpu(0, GIB, "igpu")])
    assert fitting.fit(Path("model.gguf"), plan(), 5, {}) == (5, "")


@pytest.mark.parametrize(
    ("gpu_layers", "shares", "expected"),
    [
        (0, [1.0], [-1, -1, -1, -1, -1]),
        (99, [1.0], [0, 0, 0, 0, 0]),
        (2, [5.0], [-1, -1, -1, 0, 0]),
        (5, [1.0, 1.0], [0, 0, 0, 1, 1]),
        (4, [3.0, 1.0], [-1, 0, 0, 0, 1]),
        (5, [0.0, 1.0], [1, 1, 1, 1, 1]),
        (5, [], [-1, -1, -1, -1, -1]),
    ],
)
def test_layers_are_shared_out_as_llama_cpp_does(gpu_layers: int, shares: list[float], expected: list[int]) -> None:
    assert split_layers(4, gpu_layers, shares) == expected


@given(st.lists(st.integers(DEVICE_MARGIN, 8 * GIB), min_size=1, max_size=3))
def test_as_many_layers_as_fit(free: list[int]) -> None:
    cache = plan()
    graphs = [GraphMemory(300_000_000, 1)] * len(free)
    n = layers_that_fit(WEIGHTS, cache, free, free, graphs)
    per_layer = (cache.kv_bytes + cache.ring_bytes + cache.wo_bytes) // 30

    def fits(n: int) -> bool:
        held = [0] * len(free)
        split = split_layers(30, n, free)
        for layer, device in enumerate(split):
            if device >= 0:
                held[device] += WEIGHTS.output if layer == 30 else WEIGHTS.layers[layer] + per_layer
        held = [use + 300_000_000 * (device in split[:30]) for device, use in enumerate(held)]
        return all(use <= bytes_ - DEVICE_MARGIN for use, bytes_ in zip(held, free, strict=True))

    assert n == 0 or fits(n)
    assert not any(fits(more) for more in range(n + 1, 32))


def test_cells_count_too() -> None:
    free = [DEVICE_MARGIN + 2 * GIB]
    assert layers_that_fit(WEIGHTS, plan(budget=65536), free, free) < layers_that_fit(WEIGHTS, plan(), free, free)


def test_sizes_of_weights(tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "llama", n_layer=3, n_ff=64)
    weights = read_weights(path)
    assert len(set(weights.layers)) == 1 and len(weights.layers) == 3
    n_embd = 4 * 64
    matrices = n_embd * (n_embd + 2 * 128) + n_embd * n_embd + 3 * 64 * n_embd + 2 * n_embd
    assert weights.layers[0] == 4 * matrices
    assert weights.output == 4 * (320 * n_embd + n_embd)
    tied = read_weights(models.write_random(tmp_path / "tied.gguf", "gemma", n_layer=1))
    assert tied.output == 4 * (320 * n_embd + n_embd)  # its output is the embedding
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="bad.gguf: the sizes of its weights cannot be read"):
        read_weights(tmp_path / "bad.gguf")


def test_minus_one_is_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(
        found: list[Device],
        layers: int = -1,
        graphs: Callable[[str], GraphMemory | None] = lambda device: None,
        **options: Any,
    ) -> tuple[int, str]:
        monkeypatch.setattr(fitting, "devices", lambda: found)
        monkeypatch.setattr(fitting, "read_weights", lambda path: WEIGHTS)
        return fitting.fit(Path("m.gguf"), plan(), layers, options, graphs)

    assert asked([gpu(0, 1)], 7) == (7, ""), "a number is taken as it is"
    assert asked([]) == (0, f"{fitting.NO_GPU}: everything runs on the CPU")
    assert asked([gpu(0, 0)]) == (-1, ""), "a device that does not tell"
    assert asked([gpu(0, 1, "igpu")]) == (-1, "")
    assert asked([gpu(0, 24 * GIB)]) == (-1, "")
    n, said = asked([gpu(0, 2 * GIB)])
    assert 0 < n < 31 and said == f"{n} of 31 layers fit on GPU0 with their cells; the others stay on the CPU"
    fewer, _ = asked([gpu(0, 2 * GIB)], graphs=lambda device: GraphMemory(GIB // 2, 0))
    assert 0 < fewer < n, "the work memory of the graphs counts"
    two, _ = asked([gpu(0, 2 * GIB), gpu(1, 2 * GIB)])
    assert two > n
    assert asked([gpu(0, 24 * GIB), gpu(1, 2 * GIB)], split_mode=0, main_gpu=1)[0] == n
    assert asked([gpu(0, 2 * GIB), gpu(1, 24 * GIB)], tensor_split=[1.0])[0] == n


def foreseen(engine: Engine, device: str) -> dict[str, GraphMemory]:
    """What the graphs of a device will take, if it runs any."""
    probe = probe_model(engine.plan.model, 1, 1)
    memory = fitting.graph_memory(engine.plan, probe, engine.evict, device)
    return {} if memory is None else {device: memory}


@pytest.mark.parametrize("device", devices.found())
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *[(family, {}) for family in ("llama", "qwen3", "gemma2", "gemma3", "phi3", "gpt-oss")],
        ("llama", {"method": "snapkv", "pooling": "maxpool"}),
        ("llama", {"method": "streamingllm"}),
        ("llama", {"method": "h2o"}),
        ("gpt-oss", {"method": "h2o"}),
        ("llama", {"use_wo": False, "pooling": "none"}),
        ("llama", {"metric_mode": "before", "use_norm": True}),
        ("llama", {"allocation": "pyramid"}),
        ("llama", {"allocation": "ada"}),
        ("llama", {"allocation": "ada", "method": "keydiff"}),
        ("llama", {"archive": "ram", "prefill": "recall"}),
        ("gpt-oss", {"archive": "ram", "archive_type": "q8_0"}),
        ("gemma2", {"archive": "ram", "method": "fifo"}),
    ],
    ids=str,
)
def test_work_memory_is_foreseen(family: str, changes: dict[str, object], device: str, tmp_path: Path) -> None:
    """To the byte, whatever the layer's attention: what the allocator of the device is asked for without allocating."""
    path = models.write_random(tmp_path / "model.gguf", family, seed=2, n_ff=64)
    evict = EvictConfig(budget=160, reserve=224, stages="graph").with_(**changes)
    engine = Engine(path, 1024, evict, kv_type=("q8_0", "f16"), **devices.placed(device, -1))
    report = engine.report()
    expected = foreseen(engine, device)[device]
    engine.close()
    if report.backend_reason:
        pytest.skip(report.backend_reason)
    found = {memory.device: memory.graph_bytes for memory in report.memory}
    if device == HOST:
        assert found[HOST] == expected.device_bytes + expected.host_bytes
    else:
        on_host = expected.host_bytes + devices.pinned_extra(device)
        assert (found[device], found[HOST]) == (expected.device_bytes, on_host)
    assert min(expected.device_bytes, expected.host_bytes) > 0


@pytest.mark.parametrize("device", devices.found())
@pytest.mark.parametrize("name", [name for name in SHAPES if SHAPES[name].n_embd > 2048])
def test_published_shapes_take_far_less_than_a_full_cache(name: str, device: str) -> None:
    """131,072 positions, budget 4,096, reserve 2,048: cells, queries, factors and the work memory of graphs, without
    what llama.cpp computes in."""
    shape = SHAPES[name]
    probe = Probe(
        arch=shape.arch, refusal="", n_layer=shape.n_layer, n_layer_swa=0, n_layer_recurrent=0, n_head=shape.n_head,
        n_head_kv=shape.n_head_kv, n_embd_head_k=shape.head_dim, n_embd_head_v=shape.head_dim,
        n_ctx_train=shape.n_ctx_train, bytes_per_cell=bytes_per_cell(shape, shape.n_layer),
        bytes_window=shape.n_layer * shape.n_head * shape.head_dim * 4,
    )  # fmt: skip

    def planned(prefill: str) -> tuple[MemoryPlan, GraphMemory]:
        changes = {"budget": 4096, "reserve": 2048, "stages": "graph", "prefill": prefill}
        cache = plan(probe=probe, **changes)
        memory = fitting.graph_memory(cache, probe, EvictConfig().with_(**changes), device)
        assert memory is not None, "the device runs them"
        return cache, memory

    cache, memory = planned("stream")
    taken = cache.kv_bytes + cache.ring_bytes + cache.wo_bytes + memory.device_bytes + memory.host_bytes
    assert cache.kv_bytes < taken <= 0.15 * 131072 * probe.bytes_per_cell
    # All positions at once: a few tiles of 32 MiB, and the scores of two layers, there and on the host.
    whole, memory = planned("exact")
    assert whole.capacity == 131072 and memory.device_bytes + memory.host_bytes < 512 << 20


def test_no_work_memory_without_graphs() -> None:
    graph = {"stages": "graph"}
    for changes in ({}, {"stages": "fused"}, graph | {"method": "full"}):
        evict = EvictConfig().with_(**changes)
        assert fitting.graph_memory(plan(**changes), PROBE, evict, HOST) is None
    with pytest.raises(ConfigError, match="no device 'GPU9'"):
        fitting.graph_memory(plan(stages="graph"), PROBE, EvictConfig(stages="graph"), "GPU9")


@pytest.mark.parametrize("device", devices.found())
@pytest.mark.parametrize("gpu_layers", [-1, 3])
def test_plan_is_what_is_allocated(device: str, gpu_layers: int, tmp_path: Path) -> None:
    """Cells, queries, factors and work memory exactly; and the report says the same as the library."""
    path = models.write_random(tmp_path / "model.gguf", "llama", seed=2, n_layer=4, n_ff=64)
    engine = Engine(path, 1024, EvictConfig(budget=160, reserve=224), **devices.placed(device, gpu_layers))
    report = engine.report()
    engine.close()
    n = 0 if device == HOST else 4 if gpu_layers < 0 else gpu_layers - 1
    expected = plan_devices(engine.plan, [HOST] * (4 - n) + [device] * n, foreseen(engine, device))
    found = {memory.device: memory for memory in report.memory}
    assert sum(memory.layers for memory in report.memory) == 4
    for row in expected:
        memory = found[row.device]
        extra = devices.pinned_extra(device) if row.device == HOST and n > 0 else 0
        assert (memory.layers, memory.kv_bytes, memory.ring_bytes, memory.wo_bytes, memory.graph_bytes) == (
            row.layers, row.kv_bytes, row.ring_bytes, row.wo_bytes, row.graph_bytes + extra,
        )  # fmt: skip
        assert memory.compute_bytes > 0 and memory.weights_bytes > 0
        assert (memory.graph_bytes > 0) == (n > 0)  # scores pass through memory of the host
    assert sum(memory.kv_bytes for memory in report.memory) == report.kv_bytes == engine.plan.kv_bytes
    weights = read_weights(path)
    if n == 4:
        assert found[device].weights_bytes >= sum(weights.layers) + weights.output


@pytest.mark.parametrize("device", devices.found())
def test_work_memory_of_the_graphs(device: str, tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "llama", seed=2)
    with Evicting(path, 160, 384, EvictConfig(stages="graph"), device=device) as context:
        stats, rows = context.stats, {row.device: row for row in context.call(memory_of)}
    row, host = rows[device], rows[HOST]
    copies = row.wo_bytes - (stats.bytes_wo if device == HOST else 0)  # the host keeps its own
    assert copies == stats.bytes_wo == host.wo_bytes - (copies if device == HOST else 0)
    on_host = 0 if device == HOST else host.graph_bytes
    assert row.graph_bytes + on_host + copies == stats.bytes_graph > copies
    assert row.graph_bytes > 0 and host.graph_bytes > 0
    assert row.kv_bytes == stats.bytes_kv and row.ring_bytes == stats.bytes_ring


def test_a_full_cache_has_its_memory_too(tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "llama")
    engine = Engine(path, 512, EvictConfig(method="full"))
    found = engine.report().memory
    expected: MemoryPlan = engine.plan
    engine.close()
    assert 0 < len({memory.device for memory in found} & set(devices.found())) == len(found)
    assert all((memory.layers, memory.kv_bytes) == (0, 0) for memory in found)
    assert sum(memory.other_bytes for memory in found) == expected.kv_bytes
    assert sum(memory.weights_bytes for memory in found) > 0


def test_a_plan_names_every_layer() -> None:
    with pytest.raises(ValueError, match="30 evicting layers, not 2"):
        plan_devices(plan(), [HOST, HOST], {})
    rows = plan_devices(plan(), [HOST] * 10 + ["CUDA0"] * 20, {})
    assert [(row.device, row.layers) for row in rows] == [(HOST, 10), ("CUDA0", 20)]
    assert sum(row.kv_bytes for row in rows) == plan().kv_bytes and rows[1].wo_bytes == 0
    rows = plan_devices(plan(), [HOST] * 10 + ["CUDA0"] * 20, {"CUDA0": GraphMemory(7, 5), "CUDA1": GraphMemory(9, 9)})
    assert [(row.device, row.graph_bytes) for row in rows] == [(HOST, 5), ("CUDA0", 7)]
    assert rows[1].wo_bytes == plan().wo_bytes * 20 // 30
