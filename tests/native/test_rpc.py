"""Evictions on a device whose memory the host cannot reach: ggml's RPC backend on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib.device.place import GRAPH_TESTS, PLAN_TESTS
from lib.setup.source import ROOT
from places import PATHS, SUPPORT
from rpc_servers import free_port, join, wait_for


@pytest.mark.skipif(os.name == "nt", reason="the peer loads shared libraries by their Unix names")
def test_the_graphs_on_an_rpc_device(build_cache: Path, tmp_path: Path) -> None:
    """All tests of the graphs and the plans of devices, in a process that finds two served devices."""
    folder = join(build_cache, tmp_path / "lib")
    env = os.environ | {"PYTHONPATH": PATHS}
    ports: list[int] = []
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(2):
            ports.append(free_port())
            command = [sys.executable, str(SUPPORT / "rpc_peer.py"), str(folder), str(ports[-1])]
            servers.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL))
            wait_for(ports[-1], servers[-1])
        env |= {"RESTKV_LIB_PATH": str(folder), "RESTKV_TEST_RPC": ",".join(f"127.0.0.1:{port}" for port in ports)}
        files = [str(ROOT / name) for name in (*GRAPH_TESTS, PLAN_TESTS)]
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
