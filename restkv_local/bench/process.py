"""Peak memory of this process."""

from __future__ import annotations

import re
import sys


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
