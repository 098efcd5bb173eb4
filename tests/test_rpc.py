"""Evictions on a device whose memory the host cannot reach: ggml's RPC backend on loopback."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from lib.setup.source import ROOT
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


@pytest.mark.skipif(os.name == "nt", reason="the peer loads shared libraries by their Unix names")
def test_the_graphs_on_an_rpc_device(build_cache: Path, tmp_path: Path) -> None:
    """All of tests/test_graph.py and the plans of devices, in a process that finds two served devices."""
    folder = join(build(build_cache), tmp_path / "lib")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT / "tools"), str(ROOT)])}
    ports: list[int] = []
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(2):
            ports.append(free_port())
            command = [sys.executable, str(HERE / "rpc_peer.py"), str(folder), str(ports[-1])]
            servers.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL))
            wait_for(ports[-1], servers[-1])
        env |= {"RESTKV_LIB_PATH": str(folder), "RESTKV_TEST_RPC": ",".join(f"127.0.0.1:{port}" for port in ports)}
        files = [str(HERE / name) for name in ("test_graph.py", "test_device_plan.py")]
        command = [sys.executable, "-m", "pytest", *files, "-k", "RPC0", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    finally:
        for server in servers:
            server.kill()
            server.wait()
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    ran = re.search(r"(\d+) passed", done.stdout)
    assert ran and int(ran[1]) > 40, done.stdout
    assert "skipped" not in done.stdout  # RPC lacks no operation
