"""Memory of this process, and what it reads from a disk."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

# Control groups of this process; where those of each kind lie, and the file of a limit: of cgroups 1 and 2. Those of
# the first kind without a limit name a number of about this size.
_GROUPS = Path("/proc/self/cgroup")
_ROOTS = {
    "memory": (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    "": (Path("/sys/fs/cgroup"), "memory.max"),
}
_NO_LIMIT = 1 << 60


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far, in bytes; 0 where the system does not say.

    Linux: VmHWM of /proc/self/status. `ru_maxrss` is not used there, because a child inherits its parent's maximum
    (execve keeps it), so a small child of a large process would report the parent.
    """
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            match = re.search(r"VmHWM:\s+(\d+) kB", status.read())
        return int(match[1]) * 1024 if match else 0
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def python_program(module: str) -> list[str]:
    """Command that runs `module.main()` in a fresh interpreter.

    Not `python -m`, which prefers the current folder: inside a checkout that is the package without its library.
    """
    code = f"import sys; sys.path[:] = filter(None, sys.path); from {module} import main; main()"
    return [sys.executable, "-c", code]


def disk_read_bytes() -> int:
    """Bytes that this process has had fetched from a disk, as against from the system's page cache; 0 where the system
    does not say."""
    try:
        with open("/proc/self/io", encoding="ascii") as counters:
            match = re.search(r"^read_bytes: (\d+)", counters.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


def page_cache_can_go() -> bool:
    """Whether drop_pages does anything here."""
    return hasattr(os, "posix_fadvise")


def drop_pages(file: int) -> None:
    """Write an open file out and have the system forget what it holds of it in memory: the next read goes to the disk.
    file: a descriptor, of whoever opened it."""
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def load() -> float | None:
    """Threads that wanted a core in the last minute, on average, those of this process too; None where the system does
    not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def memory_limit_bytes() -> int | None:
    """The least limit of the control groups that this process is in, which counts the pages of its files too; None:
    there is none, or the system has no such groups."""
    found = []
    try:
        groups = _GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in groups:
        _, kind, name = line.split(":", 2)
        if kind not in _ROOTS:
            continue
        root, file = _ROOTS[kind]
        group = root / name.lstrip("/")
        for folder in (group, *group.parents):
            try:
                limit = (folder / file).read_text(encoding="ascii").strip()
            except OSError:
                continue
            if limit.isdigit() and int(limit) < _NO_LIMIT:
                found.append(int(limit))
    return min(found, default=None)
