"""Memory of this machine."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes of main memory that can be had: on Linux what is available now, within the limit of a container;
    elsewhere all of it; None when the system does not tell."""
    if sys.platform == "win32":
        return _windows()
    if sys.platform == "linux":
        known = [bytes_ for bytes_ in (_available(), _container()) if bytes_ is not None]
        if known:
            return min(known)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def size(bytes_: float) -> str:
    """Bytes for people, in decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_ >= factor:
            return f"{bytes_ / factor:.1f} {unit}"
    return f"{bytes_:.0f} B"


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _container() -> int | None:
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return None
    # Pages of files count as used but are given back when memory gets short.
    return max(0, limit - used + int(stat.get("file", 0)))


def _windows() -> int | None:
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32)] + [
            (name, ctypes.c_uint64)
            for name in ("total", "free", "page_total", "page_free", "virtual", "virtual_free", "extended")
        ]

    status = Status(length=ctypes.sizeof(Status))
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 (absent on other systems)
    return int(status.free) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None
