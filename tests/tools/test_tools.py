"""tools/chat.py and tools/test.py: one sentence when something is missing, nothing done twice."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lib.setup import progress, venv
from lib.setup.source import ROOT

# pip without the user's indexes; port 9 (discard) refuses connections.
OFFLINE = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "0",
    "PIP_NO_CACHE_DIR": "1",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the tools read of a checkout, without an environment."""
    for name in ("tools", "patches", "native"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "restkv_local").mkdir()
    return tmp_path


def start(clone: Path, tool: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of the clone."""
    command = [sys.executable, str(clone / "tools" / tool)]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "CXX", "RESTKV_SDIST"))}
    return subprocess.run(command, env=clean | env, cwd=clone, capture_output=True, text=True, timeout=300)


def only_line(text: str) -> str:
    """The one line of a message."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


def fake_compiler(folder: Path, name: str, body: str) -> Path:
    """A program in folder that stands in for the compiler."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.mark.parametrize("tool", ["chat.py", "test.py"])
def test_missing_compiler_is_one_sentence(clone: Path, tool: str) -> None:
    (clone / "empty").mkdir()
    done = start(clone, tool, PATH=str(clone / "empty"))
    assert done.returncode == 1 and done.stdout == ""
    line = only_line(done.stderr)
    assert line.startswith(f"{tool}: A C++ compiler is missing") and "install one with" in line
    assert not (clone / ".venv").exists()


def test_broken_compiler_is_one_sentence(clone: Path) -> None:
    path = fake_compiler(clone / "bin", "c++", "echo 'fatal error: vector: No such file' >&2; exit 1")
    done = start(clone, "chat.py", PATH=str(path))
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert "cannot build a program (fatal error: vector" in line and "install one with" in line


@pytest.mark.parametrize("tool", ["chat.py", "test.py", "shapes.py", "gpu_check.py", "patch_cost.py"])
def test_old_python_is_one_sentence(tool: str) -> None:
    code = "import runpy, sys; sys.version_info = (3, 8, 1); runpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / "tools" / tool)], capture_output=True, text=True)
    assert done.returncode == 1
    assert only_line(done.stderr) == f"{tool}: Python 3.10 or newer is needed, this is 3.8; install a newer python3"


def test_setting_up_needs_the_standard_library_alone() -> None:
    names = ", ".join(f"lib.setup.{path.stem}" for path in (ROOT / "tools" / "lib" / "setup").glob("*.py"))
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import {names}, patches, gpu_check, patch_cost"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT / "tools")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_missing_venv_module_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venv, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(venv.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(progress.SetupError, match=r"^Python's venv module is missing.*install python3\.\d+-venv$"):
        venv._make_venv(progress.Progress(tmp_path / "log"))


def test_no_network_and_broken_environment(clone: Path) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").symlink_to(clone / "gone")
    done = start(clone, "chat.py", **OFFLINE)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert ".venv is broken; making it anew" in lines[0]
    assert "a download failed: check the network or the proxy" in lines[-1]
    log = Path(lines[-1].rpartition("The log is ")[2])
    assert "127.0.0.1" in log.read_text()
    assert not (clone / ".venv" / "restkv-stamp.json").exists()


def test_reason_of_our_own_tools_reaches_the_user(tmp_path: Path) -> None:
    line = progress.Progress(tmp_path / "log")
    line.step("building")
    command = [sys.executable, "-c", "import sys; sys.exit('  patches.py: the hunk does not fit')"]
    with pytest.raises(progress.SetupError, match=r"^building failed: the hunk does not fit\. The log is .*log$"):
        line.run(command, dict(os.environ), tmp_path, "see the log")
    line.close()


def test_terminal_shows_one_line_with_the_share_done(tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    code = (
        "import sys, os, pathlib; sys.path.insert(0, sys.argv[1]); from lib.setup import progress; "
        "p = progress.Progress(pathlib.Path('log')); p.step('building'); "
        "p.run([sys.executable, '-c', 'import time; print(\"[30/60] Building\", flush=True); time.sleep(1.5)'], "
        "dict(os.environ), pathlib.Path('.'), ''); p.close('ready')"
    )
    child = pexpect.spawn(sys.executable, ["-c", code, str(ROOT / "tools")], cwd=str(tmp_path), timeout=60)
    child.expect(r"\[0:\d\d\] building 50 %")
    child.expect("ready")
    assert b"\n" not in child.before
    child.expect(pexpect.EOF)


def test_environment_is_used_as_it_is_until_something_changes(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROOT", clone), ("VENV", clone / ".venv"), ("STAMP", clone / ".venv" / "stamp.json")):
        monkeypatch.setattr(venv, name, value)
    monkeypatch.setattr(venv, "inputs_key", lambda root=clone: keys(root))
    monkeypatch.setattr(venv, "python", lambda: Path(sys.executable))
    (clone / ".venv").mkdir()
    assert not venv.ready(tests=False)
    venv.STAMP.write_text(json.dumps(venv.wanted(tests=False)))
    assert venv.ready(tests=False) and not venv.ready(tests=True)
    venv.STAMP.write_text(json.dumps(venv.wanted(tests=True)))
    assert venv.ready(tests=False) and venv.ready(tests=True)
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON")
    assert not venv.ready(tests=True)
    monkeypatch.delenv("CMAKE_ARGS")
    (clone / "restkv_local" / "new.py").write_text("x = 1\n")
    assert not venv.ready(tests=True)


keys = venv.inputs_key


def test_key_ignores_what_is_not_installed(clone: Path) -> None:
    before = venv.inputs_key(clone)
    (clone / "restkv_local" / "__pycache__").mkdir()
    (clone / "restkv_local" / "__pycache__" / "a.pyc").write_bytes(b"x")
    (clone / "tests").mkdir()
    (clone / "tests" / "test_a.py").write_text("")
    (clone / "tools" / "lib" / "docs" / "new.py").write_text("")
    assert venv.inputs_key(clone) == before
    with (clone / "patches" / "UPSTREAM").open("a") as file:
        file.write("# a comment\n")
    patched = venv.inputs_key(clone)
    assert patched != before
    (clone / "tools" / "lib" / "setup" / "new.py").write_text("")
    assert venv.inputs_key(clone) != patched


def test_installed_libraries_are_plain_files() -> None:
    import restkv_local

    folder = Path(restkv_local.__file__ or "").parent / "lib"
    if not folder.is_dir():
        pytest.skip("the package runs from the source tree, with a library from elsewhere")
    names = sorted(path.name for path in folder.iterdir())
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert "LICENSE.llama.cpp" in names
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    libraries = [name for name in names if name != "LICENSE.llama.cpp"]
    assert {f"libllama{suffix}", f"libggml{suffix}", f"libggml-base{suffix}"} <= set(libraries)
    assert all(name.endswith(suffix) for name in libraries), libraries
