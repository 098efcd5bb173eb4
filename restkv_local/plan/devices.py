"""Which layers lie on which device, and what each device must hold: said before anything is loaded there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import DEVICE_MARGIN
from ..errors import ModelError
from .memory import MemoryPlan

HOST = "CPU"


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of an engine on one device; those of the host stand under "CPU".

    layers: evicting layers whose cells lie here. weights_bytes: of the model. kv_bytes: K and V of the evicting layers.
    other_bytes: caches that do not evict. ring_bytes: queries of the window. wo_bytes: factors of W_o. table_bytes:
    positions, and votes. graph_bytes: inputs, results and work memory of the graphs; a part of each device's is on the
    host. compute_bytes: work buffers of llama.cpp.
    free_bytes, total_bytes: of the device; 0 when it does not tell.
    """

    device: str
    layers: int
    weights_bytes: int
    kv_bytes: int
    other_bytes: int
    ring_bytes: int
    wo_bytes: int
    table_bytes: int
    graph_bytes: int
    compute_bytes: int
    free_bytes: int
    total_bytes: int

    @property
    def used_bytes(self) -> int:
        """All of it together."""
        cache = self.kv_bytes + self.other_bytes + self.ring_bytes + self.table_bytes
        return self.weights_bytes + cache + self.wo_bytes + self.graph_bytes + self.compute_bytes


@dataclass(frozen=True)
class DevicePlan:
    """What an engine's cache, and its evictions as graphs, will take on one device: see DeviceMemory. The factors of
    W_o on a device are copies for the graphs; the host keeps all of them."""

    device: str
    layers: int
    kv_bytes: int
    ring_bytes: int
    wo_bytes: int
    graph_bytes: int


@dataclass(frozen=True)
class GraphMemory:
    """What the graphs of one device take there, factors of W_o aside, and for it on the host (restkv_plan_graph)."""

    device_bytes: int
    host_bytes: int


@dataclass(frozen=True)
class Weights:
    """Bytes of a model file's weights: of each layer, and of the output with what belongs to it."""

    layers: tuple[int, ...]
    output: int


def split_layers(n_layer: int, gpu_layers: int, shares: Sequence[float]) -> list[int]:
    """Index of the device that holds each of n_layer layers and, last, the output; -1: the host.

    gpu_layers: how many of these n_layer + 1 leave the host, from the last. shares: of each device, in any unit. The
    rule is that of llama.cpp (load_tensors in src/llama-model.cpp).
    """
    n = min(max(gpu_layers, 0), n_layer + 1)
    total = sum(shares)
    if n == 0 or total <= 0:
        return [-1] * (n_layer + 1)
    ends, sum_ = [], 0.0
    for share in shares:
        sum_ += share
        ends.append(sum_ / total)
    found = [-1] * (n_layer + 1 - n)
    for i in range(n):
        found.append(next((d for d, end in enumerate(ends) if i / n < end), len(ends) - 1))
    return found


def plan_devices(plan: MemoryPlan, layers: Sequence[str], graphs: Mapping[str, GraphMemory]) -> list[DevicePlan]:
    """Cache memory by device.

    layers: the device of each evicting layer, HOST for the CPU. graphs: of each device on which evictions run as graphs
    (fitting.graph_memory). Layers are taken to be of one size, as those of nearly all models are.
    """
    if len(layers) != plan.n_layer:
        raise ValueError(f"the plan has {plan.n_layer} evicting layers, not {len(layers)}")
    rows = []
    for name in sorted(set(layers) | {HOST}):
        n = sum(device == name for device in layers)

        def part(bytes_: int, n: int = n) -> int:
            return bytes_ * n // plan.n_layer

        factors = part(plan.wo_bytes) if name in graphs else 0
        work = graphs[name].device_bytes if n and name in graphs else 0
        if name == HOST:
            factors += plan.wo_bytes
            work += sum(graph.host_bytes for device, graph in graphs.items() if device in layers)
        rows.append(DevicePlan(name, n, part(plan.kv_bytes), part(plan.ring_bytes), factors, work))
    return rows


def layers_that_fit(
    weights: Weights, plan: MemoryPlan, free: Sequence[int], shares: Sequence[float], graphs: Sequence[GraphMemory] = ()
) -> int:
    """Most layers, the output counted as one, that the devices can hold with their share of the cache.

    free: bytes of each device, of which DEVICE_MARGIN stays free for work buffers and others. graphs: of each device;
    all zero, or none: evictions do not run as graphs there.
    """
    n_layer = len(weights.layers)
    factors = plan.wo_bytes if any(graph.device_bytes for graph in graphs) else 0
    of_cache = (plan.kv_bytes + plan.ring_bytes + factors) // max(1, plan.n_layer)
    for n in range(n_layer + 1, 0, -1):
        room = [bytes_ - DEVICE_MARGIN for bytes_ in free]
        split = split_layers(n_layer, n, shares)
        for device, graph in enumerate(graphs):
            room[device] -= graph.device_bytes if device in split[:n_layer] else 0
        for layer, device in enumerate(split):
            if device >= 0:
                room[device] -= weights.output if layer == n_layer else weights.layers[layer] + of_cache
        if min(room) >= 0:
            return n
    return 0


def read_weights(path: Path) -> Weights:
    """Sizes of the weights of a GGUF file, without reading them. Raises ModelError for a file that cannot be read."""
    import gguf

    try:
        reader = gguf.GGUFReader(str(path))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name}: the sizes of its weights cannot be read: {error}") from None
    layers: dict[int, int] = {}
    output = embedding = 0
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk" and parts[1].isdigit():
            layers[int(parts[1])] = layers.get(int(parts[1]), 0) + int(tensor.n_bytes)
        elif parts[0] == "token_embd":
            embedding += int(tensor.n_bytes)  # stays on the host, and is the output too when there is no other
        elif parts[0].startswith("output"):
            output += int(tensor.n_bytes)
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    return Weights(tuple(layers.get(i, 0) for i in range(max(layers, default=-1) + 1)), output + embedding * tied)
