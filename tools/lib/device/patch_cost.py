"""One process of tools/patch_cost.py: a library, patched or not, without eviction. Prints one line of JSON.

    python patch_cost.py GPU_LAYERS THREADS MODEL

MODEL "": the embedded one. $LLAMA_CPP_LIB_PATH: another library than the package's.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# Cells, tokens of a reading, steps of an answer, and how often.
CELLS, READ, STEPS, ROUNDS = 2048, 512, 48, 3


def library() -> Any:
    """llama_cpp's functions; those of the patched library where no other is named."""
    if not os.environ.get("LLAMA_CPP_LIB_PATH"):
        from restkv_local import native

        native.lib()
    import llama_cpp.llama_cpp as llama

    return llama


def graphs(llama: Any, model: Any, params: Any) -> dict[str, dict[str, Any]]:
    """Nodes of the graphs of one token and of several: how many, and a hash of their names and operations."""
    ggml = ctypes.CDLL(str(next(Path(llama._lib._name).parent.glob("libggml-base.*"))))
    for function in (ggml.ggml_op_desc, ggml.ggml_get_name):
        function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    nodes: list[bytes] = []

    def see(node: int, ask: bool, _: Any) -> bool:
        if ask:
            nodes.append(ggml.ggml_op_desc(node) + b" " + ggml.ggml_get_name(node))
        return False  # nothing is computed one by one

    params.cb_eval = llama.ggml_backend_sched_eval_callback(see)
    context = llama.llama_init_from_model(model, params)
    found = {}
    for n in (READ, 1):
        nodes.clear()
        decode(llama, context, list(range(1, n + 1)), 0 if n > 1 else READ)
        found[str(n)] = {"nodes": len(nodes), "sha256": hashlib.sha256(b"\n".join(nodes)).hexdigest()[:16]}
    llama.llama_free(context)
    return found


def decode(llama: Any, context: Any, tokens: list[int], first: int) -> None:
    """Tokens at positions from `first`; waits until they are computed."""
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, first + i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, i == len(tokens) - 1
    status = llama.llama_decode(context, batch)
    llama.llama_synchronize(context)
    llama.llama_batch_free(batch)
    if status:
        sys.exit(f"llama_decode returned {status}")


def main(gpu_layers: int, threads: int, path: str) -> None:
    """Measure, and print."""
    llama = library()
    silence = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(silence, ctypes.c_void_p(0))
    if not path:
        from importlib.util import find_spec

        # The package alone, so that the library under test stays the one that is loaded.
        assert find_spec("restkv_local")
        from restkv_local.models.files import embedded_path

        path = str(embedded_path())
    llama.llama_backend_init()
    options = llama.llama_model_default_params()
    options.n_gpu_layers = gpu_layers
    model = llama.llama_model_load_from_file(path.encode(), options)
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.flash_attn_type = CELLS, READ, READ, 1
    params.n_threads = params.n_threads_batch = threads
    context = llama.llama_init_from_model(model, params)
    read, steps = [], []
    text = [1 + i % 1000 for i in range(READ)]
    for i in range(ROUNDS + 1):
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        start = time.perf_counter()
        decode(llama, context, text, 0)
        middle = time.perf_counter()
        for step in range(STEPS):
            decode(llama, context, [7 + step], READ + step)
        if i > 0:  # the first round warms up
            read.append((middle - start) * 1e3)
            steps.append((time.perf_counter() - middle) * 1e3 / STEPS)
    llama.llama_free(context)
    shown = graphs(llama, model, params)
    print(
        json.dumps(
            {
                "prefill_ms": statistics.median(read),
                "decode_ms": statistics.median(steps),
                "graphs": shown,
                "model": Path(path).name,
                "device": f"{threads} threads" if not gpu_layers else f"{gpu_layers} layers on a GPU",
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
