"""Imports in programs of their own: which library llama_cpp gets, by order and by folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import restkv_local
from restkv_local import location

PACKAGE = Path(restkv_local.__file__ or "").parent


def _run(program: str, *arguments: str, cwd: Path | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
    """A program in a fresh interpreter that has not been told where a library is, but by `changes`."""
    environment = {name: value for name, value in os.environ.items() if name != location.BINDINGS_VARIABLE}
    environment.setdefault("PYTHONPATH", str(PACKAGE.parent))
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment | changes, cwd=cwd, capture_output=True, text=True
    )


@pytest.mark.usefixtures("native")
def test_llama_cpp_after_the_package_runs_on_its_library() -> None:
    program = (
        "import restkv_local\n"
        "import llama_cpp\n"
        "from restkv_local import Engine\n"
        "from restkv_local.location import library_dir\n"
        "import os; assert os.path.samefile(os.path.dirname(llama_cpp.llama_cpp._lib._name), library_dir())\n"
        "print(issubclass(Engine, llama_cpp.Llama))"
    )
    done = _run(program)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.usefixtures("native")
def test_llama_cpp_before_the_package_with_another_library(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(location.library_dir(), other)
    program = "import llama_cpp\nimport restkv_local\nrestkv_local.Engine"
    done = _run(program, **{location.BINDINGS_VARIABLE: str(other)})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"restkv_local.errors.LibraryError: llama_cpp is already imported with {other}")
    assert last.endswith("import restkv_local before llama_cpp, in a fresh process")


@pytest.mark.usefixtures("native")
def test_importing_the_package_loads_next_to_nothing() -> None:
    """A program that only may need an engine does not wait for one: what is loaded is this package's own files, beside
    the standard library's pathlib and typing. Where the library is, is said: a checkout looks for an installed one."""
    program = (
        "import __future__, importlib, pathlib, typing, sys\n"
        "before = set(sys.modules)\n"
        "import restkv_local\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = _run(program, **{location.PATH_VARIABLE: str(location.library_dir())})
    ours = "restkv_local restkv_local._version restkv_local.errors restkv_local.location\n"
    assert (done.stdout, done.stderr) == (ours, "")


def test_the_reference_needs_no_library(tmp_path: Path) -> None:
    program = "import os, restkv_local.reference\nprint(os.environ.get('LLAMA_CPP_LIB_PATH'))"
    done = _run(program, **{location.PATH_VARIABLE: str(tmp_path)})
    assert (done.stdout, done.stderr) == ("None\n", "")


# As if numba and torch were not installed.
WITHOUT_EXTRAS = "import sys; sys.modules.update(numba=None, torch=None)\n"


def test_an_engine_needs_no_extra(model: Path) -> None:
    program = WITHOUT_EXTRAS + (
        "from restkv_local import Engine, EvictConfig\n"
        "with Engine(sys.argv[1], 512, EvictConfig(budget=64, reserve=64), n_threads=1) as engine:\n"
        "    engine.create_completion('The sea is blue. ' * 12, max_tokens=2)\n"
        "    print(engine.report().n_evictions > 0)\n"
    )
    done = _run(program, str(model))
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize(("name", "package"), [("score", "torch"), ("score_lean", "numba")])
def test_the_reference_without_its_extra_says_what_to_install(name: str, package: str) -> None:
    program = WITHOUT_EXTRAS + (
        "import numpy as np\n"
        "from restkv_local import reference\n"
        "q, k, wo = np.ones((2, 16, 32), 'f'), np.ones((2, 100, 32), 'f'), np.ones((8, 64), 'f')\n"
        "getattr(reference, sys.argv[1])(q, k, k, wo, budget=40, window=16)\n"
    )
    done = _run(program, name)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        f"restkv_local.errors.ExtraError: the reference needs {package}: run 'pip install {package}', or install "
        f"restkv-local with its extra 'reference'"
    )


@pytest.mark.usefixtures("native")
def test_the_check_without_numba_says_what_it_did_not_compare() -> None:
    program = WITHOUT_EXTRAS + (
        "from restkv_local.check import check_fused\n"
        "from restkv_local.cli.doctor.show import advice\n"
        "check = check_fused(quick=True).to_json()\n"
        "found = dict(checks=[check], devices=[], memory=dict(verdict='skipped'), verdict='ok', through_host=[])\n"
        "print(check['verdict'], check['rows_equal'], check['sets'], advice(found)[0][0])\n"
    )
    done = _run(program)
    assert done.stderr == ""
    assert done.stdout.startswith("ok True None Our kernels were not compared with the reference, only moved rows")
    assert "the reference needs numba: run 'pip install numba'" in done.stdout


@pytest.mark.usefixtures("native")
def test_sources_find_the_library_of_the_package_that_they_shadow(tmp_path: Path) -> None:
    """In a checkout's root `python -c` imports the sources, which hold no library."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    skip = shutil.ignore_patterns("lib", "__pycache__")
    shutil.copytree(PACKAGE, checkout / "restkv_local", ignore=skip)
    shutil.copytree(location.library_dir(), site / "restkv_local" / "lib")
    about = site / "restkv_local-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: restkv-local\nVersion: 1\n")
    program = (
        "import restkv_local\n"
        "from restkv_local import native\n"
        "print(restkv_local.__file__, native.library_dir(), native.lib().restkv_abi_version() > 0)"
    )
    done = _run(program, cwd=checkout, PYTHONPATH=str(site), **{location.PATH_VARIABLE: ""})
    assert done.stderr == ""
    expected = f"{checkout / 'restkv_local' / '__init__.py'} {site / 'restkv_local' / 'lib'} True\n"
    assert done.stdout == expected


def test_a_checkout_without_any_library_says_what_to_do(tmp_path: Path) -> None:
    skip = shutil.ignore_patterns("lib", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "restkv_local", ignore=skip)
    program = "import sys; sys.path[1:] = [p for p in sys.path[1:] if 'site-packages' not in p]\n"
    program += "from restkv_local import native\nnative.library_dir()"
    done = _run(program, cwd=tmp_path, PYTHONPATH="", **{location.PATH_VARIABLE: ""})
    assert done.returncode == 1
    assert f"there is no llama library in {tmp_path / 'restkv_local' / 'lib'}: run 'pip install .'" in done.stderr
