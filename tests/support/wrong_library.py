"""Build the library that is wrong on purpose (native/graph/wrong_stage.h, native/fault.h)."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from lib.setup.source import ROOT


def build_wrong(cache: Path) -> Path:
    """The library whose stages can be made wrong: some files compiled anew and linked with the objects of the package's
    build, or of a build of its own where that is not at hand."""
    key = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    env = os.environ | {"PATH": path, "RESTKV_CACHE": str(cache)}
    folder = cache / "build" / key
    program = shutil.which("cmake", path=path)
    assert program, "cmake is not installed; run the tests with `python3 tools/test.py`"
    commands = [[program, "--build", str(folder), "--target", "restkv-wrong-stage"]]
    if not (folder / "build.ninja").exists():
        folder = cache / "build" / f"{key}-wrong"
        configure = [program, "-S", str(ROOT / "native"), "-B", str(folder), "-G", "Ninja"]
        commands = [
            [*configure, f"-DPython_EXECUTABLE={sys.executable}"],
            [program, "--build", str(folder), "--target", "restkv-wrong-stage"],
        ]
    for command in commands:
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return folder / "wrong-stage"
