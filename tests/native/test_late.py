"""Recalls and evictions on a device that works as late as it may: nothing is used before it is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib.setup.source import ROOT
from places import PATHS
from rpc_servers import join

# All of the recalls; of the evictions, which overlap in the same way, enough to see a layer under way.
TESTS = ("tests/native/test_recall_graphs.py", "tests/native/test_graph.py")
CHOSEN = "LATE0 and ((panels and 60000) or soft_cap or no_number or archive or (family and (llama or gpt)))"


@pytest.mark.skipif(os.name == "nt", reason="the device is built for Unix")
def test_what_a_queue_does_late(build_cache: Path, tmp_path: Path) -> None:
    folder = join(build_cache, tmp_path / "lib", "late")
    env = os.environ | {"PYTHONPATH": PATHS, "RESTKV_LIB_PATH": str(folder), "RESTKV_TEST_LATE": "1"}
    files = [str(ROOT / name) for name in TESTS]
    command = [sys.executable, "-m", "pytest", *files, "-k", CHOSEN, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    ran = re.search(r"(\d+) passed", done.stdout)
    assert ran and int(ran[1]) > 15, done.stdout
