"""Where figures come from: the machine and the programs."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from .._version import __version__


def device() -> dict[str, Any]:
    """The machine that a measurement ran on."""
    cpu = platform.processor() or platform.machine()
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as cpuinfo:
            names = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}


def versions() -> dict[str, str]:
    """The programs that a measurement ran with."""
    import llama_cpp

    return {"restkv_local": __version__, "llama_cpp": llama_cpp.__version__, "python": platform.python_version()}
