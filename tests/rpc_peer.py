"""Both ends of ggml's RPC backend on loopback: a device whose memory the host cannot reach.

    python rpc_peer.py serve FOLDER PORT          serve this machine's CPU
    python rpc_peer.py check FOLDER PORT MODEL..  evict there, as graphs and through the host; one line of JSON per case
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

CASES: list[dict[str, Any]] = [
    {},
    {"scale": 50},
    {"method": "snapkv", "pooling": "avgpool", "kernel": 5},
    {"method": "streamingllm"},
    {"metric_mode": "before"},
    {"allocation": "pyramid"},
    {"allocation": "ada"},
]


def load(folder: str, name: str) -> ctypes.CDLL:
    """A library of ggml, its functions returning pointers."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return ctypes.CDLL(str(Path(folder, f"lib{name}{suffix}")), mode=ctypes.RTLD_GLOBAL)


def serve(folder: str, port: str) -> None:
    """Serve the CPU until the process is ended."""
    ggml, rpc = load(folder, "ggml"), load(folder, "ggml-rpc")
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(ggml.ggml_backend_dev_by_type(0))
    one = ctypes.c_size_t(1)
    rpc.ggml_backend_rpc_start_server(f"127.0.0.1:{port}".encode(), None, one, one, devices)


def check(folder: str, port: str, paths: list[str]) -> None:
    """Evict on the served device."""
    os.environ["RESTKV_LIB_PATH"] = folder
    import numpy as np

    from restkv_local import kernels, native
    from restkv_local.allocation import share_out
    from restkv_local.config import EvictConfig

    native.lib()
    ggml, rpc = load(folder, "ggml"), load(folder, "ggml-rpc")
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_register(rpc.ggml_backend_rpc_add_server(f"127.0.0.1:{port}".encode()))

    from score_cases import random_arrays
    from test_graph import BUDGET, run

    data = random_arrays(3)
    params: dict[str, Any] = {"method": "restkv", "budget": 80, "window": 16, "scale": 30, "reduce": "mean"}
    fused, graph = kernels.score(**data, **params), kernels.score(**data, backend="graph:RPC0", **params)
    error = float(np.max(np.abs(graph[0] - fused[0]) / fused[0]))
    print(json.dumps({"score_error": error, "same_sets": bool(np.array_equal(graph[2], fused[2]))}), flush=True)

    def case(path: str, changes: dict[str, Any], kv: str) -> None:
        ways = [EvictConfig(stages=way).with_(**changes) for way in ("auto", "host")]
        graph, host = (run(Path(path), way, kv=kv, shares=share_out(way, BUDGET, 2, 2)) for way in ways)
        said = {
            "model": Path(path).name,
            "changes": changes,
            "kv": kv,
            "devices": graph.stats.devices.decode(),
            "reason": graph.stats.reason.decode(),
            "layers": [graph.event.n_layer, graph.event.n_layer_graph, graph.event.n_layer_host],
            "layers_host": [host.event.n_layer, host.event.n_layer_graph, host.event.n_layer_host],
            "evictions": graph.stats.n_evictions,
            "same_sets": all(np.array_equal(a, b) for a, b in zip(graph.kept, host.kept, strict=True)),
            "same_logits": bool(np.array_equal(graph.logits, host.logits)),
        }
        print(json.dumps(said), flush=True)

    for path in paths:
        case(path, {}, "f16")
    for changes in CASES[1:]:
        case(paths[0], changes, "f16")
    case(paths[0], {}, "q8_0")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:4])
    else:
        check(*sys.argv[2:4], sys.argv[4:])
