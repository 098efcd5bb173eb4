"""Build what only tests want of native/CMakeLists.txt."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from lib.setup.source import ROOT


def build(cache: Path, target: str) -> Path:
    """The build folder with this target: that of the package, whose objects serve again, else one of its own that later
    runs use again."""
    key = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    # The patched source that the package was built from.
    env = os.environ | {"PATH": path, "RESTKV_CACHE": str(cache)}
    program = shutil.which("cmake", path=path)
    assert program, "cmake is not installed; run the tests with `python3 tools/test.py`"
    folder = cache / "build" / key
    commands = [[program, "--build", str(folder), "--target", target]]
    if not (folder / "build.ninja").exists():
        folder = cache / "build" / f"{key}-tests"
        configure = [program, "-S", str(ROOT / "native"), "-B", str(folder), "-G", "Ninja"]
        commands = [
            [*configure, f"-DPython_EXECUTABLE={sys.executable}"],
            [program, "--build", str(folder), "--target", target],
        ]
    for command in commands:
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return folder
