"""Runs commands with their output in a log, and shows one line: the time so far and what happens."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# ninja prints "[12/345] Building ..." for each step.
_NINJA = re.compile(rb"\[(\d+)/(\d+)\]")
# What pip and its helpers say when the outside cannot be reached.
_NETWORK = re.compile(
    r"Temporary failure in name resolution|Name or service not known|nodename nor servname|NewConnectionError|"
    r"Failed to establish a new connection|Connection refused|Connection reset|Network is unreachable|"
    r"ReadTimeoutError|ConnectTimeoutError|ProxyError|SSLError|Connection to .* timed out|could not download|"
    r"No matching distribution found",
    re.IGNORECASE,
)
# Our own tools say what is wrong in one line.
_REASON = re.compile(r"patches\.py: (.+)")


class SetupError(Exception):
    """Setting up cannot go on; the message says what to install or do."""


class Progress:
    """One line on stderr. On a terminal it is redrawn every half second, elsewhere printed once per step."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._start = time.monotonic()
        self._step = ""
        self._shown = ""
        self._done = threading.Event()
        self._terminal = sys.stderr.isatty()
        self._thread = threading.Thread(target=self._draw, daemon=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        self._thread.start()

    def step(self, text: str) -> None:
        """Name what happens from now on."""
        self._step = text
        if not self._terminal:
            print(f"[{self._elapsed()}] {text}", file=sys.stderr, flush=True)

    def close(self, text: str = "") -> None:
        """Erase the line; leave `text` in its place."""
        self._done.set()
        self._thread.join()
        if self._terminal:
            sys.stderr.write("\r\033[K")
        if text:
            print(f"[{self._elapsed()}] {text}", file=sys.stderr, flush=True)

    def run(self, command: Sequence[str | Path], env: Mapping[str, str], cwd: Path, hint: str) -> None:
        """Run one command; SetupError names the log and, unless the network is to blame, says `hint`."""
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(map(str, command))}\n".encode())
            log.flush()
            begin = log.tell()
            rc = subprocess.run(
                command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            ).returncode
        if rc:
            with self.log.open("rb") as log:
                log.seek(begin)
                text = log.read().decode(errors="replace")
            if reason := _REASON.search(text):
                hint = reason[1]
            elif _NETWORK.search(text):
                hint = "a download failed: check the network or the proxy, then run this again"
            elif "No space left on device" in text:
                hint = "the disk is full: free some space (about 3 GB are needed), then run this again"
            raise SetupError(f"{self._step} failed: {hint}. The log is {self.log}")

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._start)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def _percent(self) -> str:
        """How far a build in the log is, or nothing."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 4096))
            steps = _NINJA.findall(log.read())
        return f" {100 * int(steps[-1][0]) // int(steps[-1][1])} %" if steps else ""

    def _draw(self) -> None:
        while self._terminal and not self._done.wait(0.5):
            line = f"[{self._elapsed()}] {self._step}{self._percent()}"
            sys.stderr.write(f"\r\033[K{line[:100]}")
            sys.stderr.flush()
