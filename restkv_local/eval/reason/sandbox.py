"""Runs code that a model wrote, where the caller allowed it: in a process of its own with little time, memory, files
and environment, and without a network where the system can take it away. It keeps mistakes from doing harm; it is no
wall against an attacker.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """seconds: of wall clock, and of CPU rounded up. memory, file: bytes of address space and of a written file."""

    seconds: float = 10.0
    memory: int = 2**30
    file: int = 2**20


# Runs in the child: takes its limits on, then the program, and says the secret word only if the program came to its
# end. The word comes by standard input, before the program runs, and stays out of the program's names.
_RUNNER = r"""
import sys

def main():
    import ctypes, os, resource
    word, seconds, memory, file = sys.stdin.readline().split()
    source = sys.stdin.read()
    def limit(kind, value):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL: it does not outlive the one that waits for it
        # A network namespace of its own, for which most need a user namespace: no interface is up, not even loopback.
        if libc.unshare(0x10000000 | 0x40000000) != 0:
            libc.unshare(0x40000000)
    limit(resource.RLIMIT_CPU, int(seconds))
    limit(resource.RLIMIT_FSIZE, int(file))
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, 64)
    if sys.platform != "darwin":  # refused there
        limit(resource.RLIMIT_AS, int(memory))
    if hasattr(resource, "RLIMIT_NPROC"):
        limit(resource.RLIMIT_NPROC, 0)
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    code = compile(source, "answer.py", "exec")
    exec(code, {"__name__": "__main__"})
    os.write(out, word.encode())
    os._exit(0)

main()
"""
# Comes to its end only where an address on the loopback can be reached by a datagram.
_PROBE = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))
"""


def supported() -> bool:
    """Whether this system has the limits that are needed (Linux, macOS and other Unix)."""
    return os.name == "posix"


def run(program: str, limits: Limits | None = None) -> bool:
    """Whether a Python program runs to its end without an exception, inside the limits.

    An early exit, however clean, is no success. Output is thrown away. Raises ConfigError where the system has no
    limits to set.
    """
    if not supported():
        raise ConfigError("code is run only where a process can be limited: on Linux, macOS and other Unix")
    limits = limits or Limits()
    word = secrets.token_hex(16)
    head = f"{word} {int(limits.seconds) + 1} {limits.memory} {limits.file}\n"
    with (
        tempfile.TemporaryDirectory(prefix="restkv-code-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as out,  # a file, so that what is written to it is bounded too
    ):
        # The environment has what a Python needs and no more: no keys, no proxies, no home.
        environment = {"HOME": folder, "TMPDIR": folder, "PATH": os.defpath, "LANG": "C.UTF-8"}
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _RUNNER],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            child.communicate((head + program).encode("utf-8", "replace"), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(child)
            _open_up(Path(folder))
        out.seek(0)
        return out.read(2 * len(word)) == word.encode()


def network_is_off() -> bool:
    """Whether a program in the sandbox finds no network. False where the system does not let a process give it up."""
    return not run(_PROBE)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started in its session."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        child.kill()
    child.communicate()


def _open_up(folder: Path) -> None:
    """Make what a program left removable: it may have taken rights away from folders."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            inner = Path(path, name)
            if not inner.is_symlink():
                with contextlib.suppress(OSError):
                    inner.chmod(0o700)
