"""Evictions on a device whose memory the host cannot reach: ggml's RPC backend on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest

import models
from _source import ROOT
from restkv_local import native

HERE = Path(__file__).parent


def build(cache: Path) -> Path:
    """Folder of the RPC backend alone, built where later runs use it again."""
    key = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    folder = cache / "build" / f"{key}-rpc"
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    env = os.environ | {"PATH": path, "RESTKV_CACHE": str(cache)}
    configure = ["cmake", "-S", str(ROOT / "native"), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DGGML_RPC=ON"]
    for command in (configure, ["cmake", "--build", str(folder), "--target", "ggml-rpc"]):
        program = shutil.which(command[0], path=path)
        assert program, "cmake is not installed; run the tests with `python3 tools/test.py`"
        done = subprocess.run([program, *command[1:]], env=env, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return folder / "bin"


def join(backend: Path, folder: Path) -> Path:
    """The library under test and the backend in one folder, where they find each other."""
    shutil.copytree(native.library_dir(), folder)
    for path in backend.glob("libggml-rpc.*"):
        shutil.copy2(path, folder)
    return folder


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until the server takes connections."""
    for _ in range(300):
        assert server.poll() is None, "the RPC server ended"
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the RPC server does not answer")


@pytest.mark.skipif(os.name == "nt", reason="the peers load shared libraries by their Unix names")
def test_evictions_on_an_rpc_device(build_cache: Path, tmp_path: Path) -> None:
    folder, port = join(build(build_cache), tmp_path / "lib"), free_port()
    names = ("llama", "gpt-oss")
    paths = [str(models.write_random(tmp_path / f"{name}.gguf", name, seed=3)) for name in names]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT / "tools"), str(ROOT)])}
    peer = [sys.executable, str(HERE / "rpc_peer.py")]
    server = subprocess.Popen([*peer, "serve", str(folder), str(port)], env=env, stdout=subprocess.DEVNULL)
    try:
        wait_for(port, server)
        command = [*peer, "check", str(folder), str(port), *paths]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    finally:
        server.kill()
        server.wait()
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    score, cases = lines[0], lines[1:]
    assert score["score_error"] < 2e-5 and score["same_sets"]
    assert len(cases) == len(names) + 7
    for case in cases:
        assert case["same_sets"] and case["same_logits"] and case["evictions"] >= 2, case
        layers, graph, host = case["layers"]
        if case["changes"].get("metric_mode") == "before" or "allocation" in case["changes"]:
            # said, and done through the host
            assert (graph, host) == (0, layers) and "no graph" in case["reason"], case
        else:
            assert (graph, host) == (layers, 0) and "RPC0" in case["devices"] and not case["reason"], case
        assert case["layers_host"] == [layers, 0, layers], case
