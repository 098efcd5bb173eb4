"""Servers of ggml's RPC backend on loopback, and a library that finds them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

from native_build import build
from restkv_local import native


def join(cache: Path, folder: Path, name: str = "rpc") -> Path:
    """The library under test and a backend of the tests in one folder, where they find each other."""
    shutil.copytree(native.library_dir(), folder)
    for path in (build(cache, f"restkv-{name}") / name).glob(f"libggml-{name}.*"):
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
