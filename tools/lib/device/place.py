"""What tools/gpu_check.py starts its steps with: programs of the environment that it makes, or what is at hand."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..setup import venv
from ..setup.source import ROOT

Words = list[str | Path]

PROBE = Path(__file__).with_name("probe.py")
GRAPH_TESTS = (
    "tests/native/test_graph.py",
    "tests/native/test_graph_scores.py",
    "tests/native/test_recall.py",
    "tests/native/test_recall_graphs.py",
    "tests/native/test_look.py",
)
RPC_TESTS = "tests/native/test_rpc.py"
PLAN_TESTS = "tests/engine/test_device_plan.py"


@dataclass(frozen=True)
class Place:
    """python, bench, pytest: how each is started; pytest is None where it is not installed. tests: what it runs.
    environment: of all steps."""

    python: Path
    bench: Words
    pytest: Words | None
    tests: tuple[str, ...]
    environment: Mapping[str, str]


def made() -> Place:
    """The environment of the tests, once `venv.ensure` has made it."""
    return Place(
        venv.python(), [venv.script("restkv-bench")], [venv.script("pytest")],
        (*GRAPH_TESTS, RPC_TESTS), venv.environment(),
    )  # fmt: skip


def at_hand() -> Place:
    """The interpreter that runs this, with the checkout's sources and the library that they find. Nothing is built, so
    the tests on the RPC backend are left out, and pip is kept from asking anybody."""
    python = Path(sys.executable)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PIP_NO_INDEX": "1"}
    pytest: Words | None = [python, "-m", "pytest"] if importlib.util.find_spec("pytest") else None
    return Place(
        python, [python, PROBE, "restkv-bench"], pytest,
        (*GRAPH_TESTS, PLAN_TESTS), environment,
    )  # fmt: skip
