"""A process that meets ggml's RPC device on loopback: what the doctor and an engine make of it, one line of JSON each.

    python doctor_peer.py FOLDER PORT MODEL      FOLDER: of the library

$RESTKV_WRONG_STAGE, with the library that is wrong on purpose, says which stage is ("round": none).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

from devices import library


def say(what: str, **found: Any) -> None:
    print(json.dumps({"what": what, **found}), flush=True)


def main(folder: str, port: str, model: str) -> None:
    """Check, evict twice (the second engine remembers), evict through the host, and call the doctor."""
    os.environ["RESTKV_LIB_PATH"] = folder
    from restkv_local import Engine, EvictConfig, native
    from restkv_local.check import check_device, devices, first_load

    native.lib()
    ggml, rpc = library("ggml", folder), library("ggml-rpc", folder)
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_register(rpc.ggml_backend_rpc_add_server(f"127.0.0.1:{port}".encode()))

    say("devices", devices=[device.to_json() for device in devices()])
    say("quick", check=check_device("RPC0", quick=True).to_json())

    checked = []
    real = first_load.check_device
    first_load.check_device = lambda *arguments, **options: checked.append(arguments) or real(*arguments, **options)
    for what, stages in (("first", "auto"), ("second", "auto"), ("host", "host")):
        checked.clear()
        evict = EvictConfig(budget=128, reserve=128, stages=stages)
        engine = Engine(model, 1024, evict, n_gpu_layers=-1, n_threads=1, chat_format="chatml")  # it has no template
        heard = list(engine.report().notices)
        engine.eval([10 + i * 7 % 200 for i in range(700)])
        report = engine.report()
        say(
            what,
            checked=len(checked),
            backend=report.backend,
            reason=report.backend_reason,
            heard=heard,
            notices=report.notices,
            evictions=report.n_evictions,
            kept=[engine.kept(layer, 0).tolist() for layer in range(2)],
            logits=engine.scores[engine.n_tokens - 1].astype(float).tolist(),
        )
        engine.close()

    if os.environ.get("RESTKV_WRONG_STAGE") in ("attend", "compact"):
        from click.testing import CliRunner

        from restkv_local.cli.chat.main import main as chat

        path = Path(folder, "doctor.json")
        result = CliRunner().invoke(chat, ["doctor", "--device", "RPC0", "--no-memory", "--json", str(path)])
        say("doctor", code=result.exit_code, text=result.stdout, found=json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(*sys.argv[1:])
