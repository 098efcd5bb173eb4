"""The repository's own rules: linters, one home per pin, what CI runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lib.setup.source import ROOT, upstream

NATIVE = sorted(path for suffix in ("cpp", "h") for path in (ROOT / "native").rglob(f"*.{suffix}"))
PYTHON = sorted(path for name in ("restkv_local", "tools", "tests") for path in (ROOT / name).rglob("*.py"))
# They may be longer: the whole interface, and the kernels that are compiled once per instruction set.
WHOLE = [ROOT / "native" / "restkv.h", ROOT / "native" / "stages" / "cpu" / "kernels.cpp"]


def run(*command: str) -> None:
    """Run a linter from the repository root; its output becomes the message of the failure."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def program(name: str) -> str:
    """A linter beside the running interpreter."""
    path = shutil.which(name, path=sysconfig.get_path("scripts"))
    assert path, f"{name} is not installed; run the tests with `python3 tools/test.py`"
    return path


def test_ruff() -> None:
    run(program("ruff"), "check", "restkv_local", "tools", "tests")


def test_mypy_strict(tmp_path: Path) -> None:
    run(sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path))


def test_clang_format() -> None:
    run(program("clang-format"), "--dry-run", "--Werror", *map(str, NATIVE))


@pytest.mark.parametrize("path", NATIVE + PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short(path: Path) -> None:
    most = 449 if path in WHOLE else 400
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most, "split it: one concern per file"


def test_ci_runs_what_users_run() -> None:
    path = ROOT / ".ci" / "run"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "exec python3 tools/test.py"]
    assert path.stat().st_mode & 0o111, "chmod +x .ci/run"


def test_pins_agree() -> None:
    pin = upstream()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"llama-cpp-python=={pin["version"]}"' in project
    setup = (ROOT / "tools" / "lib" / "setup" / "venv.py").read_text(encoding="utf-8")
    model = re.search(r'^MODEL = "(.+)"$', setup, re.MULTILINE)
    assert model and f'smollm2 = ["{model[1]}"]' in project
    build = re.search(r"scikit-build-core[>=.\d]+", project)
    assert build and build[0] in setup


def test_changelog_names_the_version_and_the_commit() -> None:
    from restkv_local._version import __version__

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text or f"## [{__version__}]" in text
    newest = text.split("\n## ")[1]
    assert upstream()["commit"] in newest


def test_every_patch_is_explained() -> None:
    text = (ROOT / "patches" / "README.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `(\d{4}-.+?\.patch)` \| .+ \| .+ \| .+ \|$", text, re.MULTILINE)
    assert explained == [path.name for path in sorted((ROOT / "patches").glob("*.patch"))]
