"""Servers of ggml's RPC backend on loopback, and a library that finds them."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from lib.setup.source import ROOT
from restkv_local import native


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
