"""An eviction that fails: until something has moved the cache is as it was, after that it is empty and all know."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import models
from native_build import build
from places import PATHS, SUPPORT
from restkv_local import native

Case = tuple[dict[str, Any], dict[str, str]]

AS_IT_WAS, LOST = "as it was", "lost"

# What every way has: before, between and after the layers.
ENDS = {
    "plan:0:memory": AS_IT_WAS,
    "scratch:0:memory": AS_IT_WAS,
    "score:0:device": AS_IT_WAS,
    "score:0:other": AS_IT_WAS,
    "move:0:device": LOST,
    "tables:0:memory": LOST,
    "cells:0:memory": LOST,
    "log:0:memory": LOST,
}
# Two layers of two KV heads, one after the other.
FUSED = {
    **ENDS,
    "read:0:device": AS_IT_WAS,
    "read:1:memory": AS_IT_WAS,
    "score:1:memory": LOST,
    "score:3:memory": LOST,
    "move:1:other": LOST,
    "move:3:memory": LOST,
}
HOST = {**FUSED, "write:0:device": LOST, "write:1:device": LOST}
# The second layer is scored before the first one moves; with graphs on the CPU a step ahead is all that there is.
GRAPH = {
    **ENDS,
    "begin:0:device": AS_IT_WAS,
    "begin:1:device": AS_IT_WAS,
    "score:1:memory": AS_IT_WAS,
    "score:2:device": LOST,
    "move:1:memory": LOST,
    "wait:0:device": LOST,
}
# All heads of a layer are scored before one moves.
TOGETHER = {"score:1:memory": AS_IT_WAS, "score:2:memory": LOST, "move:0:memory": LOST}
VOTES = {
    "before-vote:0:memory": AS_IT_WAS,
    "vote:0:device": LOST,
    # while the text is read: said by the eviction
    "before-vote:0:memory:early": LOST,
    "vote:0:other:early": LOST,
    "score:0:memory": AS_IT_WAS,
    "move:0:memory": LOST,
}

# With an archive: nothing moves before all rows of a layer are there, and a chunk that could not recall is cut off.
READING = {
    "archive:0:memory": AS_IT_WAS,
    "archive:1:device": AS_IT_WAS,
    "reading:0:memory": AS_IT_WAS,
    "reading:1:device": AS_IT_WAS,
    "fetch:0:memory": AS_IT_WAS,
    "fetch:1:other": AS_IT_WAS,
    "cells:0:memory": LOST,
    "log:0:memory": LOST,
    "recall:0:memory:ask": AS_IT_WAS,
    "recall:1:device:ask": AS_IT_WAS,
    "fetch:0:memory:ask": AS_IT_WAS,
    "fetch:1:memory:ask": LOST,
    "cells:0:memory:ask": LOST,
}

# Where a device attends, also while a panel of keys is on its way to it.
READING_GRAPH = {
    "reading:1:memory": AS_IT_WAS,
    "keys:0:device": AS_IT_WAS,
    "keys:1:memory": AS_IT_WAS,
    "fetch:1:device": AS_IT_WAS,
    "keys:1:device:ask": AS_IT_WAS,
    "fetch:1:memory:ask": LOST,
}

CASES: list[Case] = [
    ({"stages": "fused"}, FUSED),
    ({"stages": "host"}, HOST),
    ({"stages": "graph"}, GRAPH),
    ({"stages": "fused", "allocation": "ada"}, {**TOGETHER, "move:3:device": LOST}),
    ({"stages": "graph", "allocation": "ada"}, {**TOGETHER, "move:1:device": LOST}),
    ({"stages": "host", "allocation": "pyramid"}, {"score:0:memory": AS_IT_WAS, "write:1:device": LOST}),
    ({"stages": "fused", "method": "h2o"}, VOTES),
    ({"stages": "graph", "method": "h2o"}, {**VOTES, "score:1:memory": LOST}),
    ({"stages": "fused", "method": "tova"}, {"score:1:memory": AS_IT_WAS, "move:1:memory": LOST}),
    ({"stages": "graph", "method": "tova"}, {"score:1:memory": AS_IT_WAS, "move:1:memory": LOST}),
    ({"stages": "fused", "prefill": "guided"}, {"score:0:memory": AS_IT_WAS, "score:1:memory": LOST}),
    ({"stages": "fused", "prefill": "exact"}, {"move:1:memory": LOST}),
    ({"archive": "ram"}, READING),
    ({"archive": "ram", "stages": "graph"}, READING_GRAPH),
    ({"archive": "ram", "prefill": "stream"}, {"archive:1:memory": AS_IT_WAS, "move:1:memory": LOST}),
]


@pytest.fixture(scope="module")
def failing(build_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a library whose evictions can be made to fail."""
    if os.name == "nt":
        pytest.skip("the peer loads shared libraries by their Unix names")
    folder = tmp_path_factory.mktemp("lost") / "lib"
    shutil.copytree(native.library_dir(), folder)
    for path in (build(build_cache, "restkv-wrong-stage") / "wrong-stage").glob("libllama.*"):
        shutil.copy2(path, folder)
    return folder


def meet(folder: Path, model: Path, cases: list[Case]) -> list[dict[str, Any]]:
    """What a process finds whose evictions fail at these steps."""
    words = json.dumps([(options, list(steps)) for options, steps in cases])
    command = [sys.executable, str(SUPPORT / "fault_peer.py"), str(folder), str(model), words]
    env = os.environ | {"PYTHONPATH": PATHS}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def judge(found: list[dict[str, Any]], cases: list[Case]) -> None:
    """Each failure left what it must."""
    expected = [(options, step, outcome) for options, steps in cases for step, outcome in steps.items()]
    assert len(found) == len(expected)
    for one, (options, step, outcome) in zip(found, expected, strict=True):
        assert (one["case"], one["step"]) == (options, step)
        where = f"{options} {step}: {one}"
        assert one["raised"], where
        assert one["positions"] == one["n_tokens"], where
        if outcome == LOST:
            assert one["n_tokens"] == 0 and one["cells"] == 0 and not one["logits"], where
            assert "the cache was lost" in one["raised"] and "read the text again" in one["raised"], where
            assert one["status"] == [1, 1], where
        else:
            assert one["n_tokens"] > 0 and "lost" not in one["raised"], where
        assert one["same"], where


def test_every_step_of_every_way(failing: Path, tmp_path: Path) -> None:
    model = models.write_random(tmp_path / "model.gguf", "llama", seed=5)
    judge(meet(failing, model, CASES), CASES)


def test_a_sliding_window_goes_with_the_cache(failing: Path, tmp_path: Path) -> None:
    model = models.write_random(tmp_path / "model.gguf", "gemma3", seed=5, n_layer=4)
    steps = {"score:0:memory": AS_IT_WAS, "move:1:memory": LOST, "log:0:memory": LOST}
    cases: list[Case] = [({"stages": "fused"}, steps)]
    judge(meet(failing, model, cases), cases)
