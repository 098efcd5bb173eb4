"""The native stages, and the cache inside llama_decode, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import models
from lib.setup.source import ROOT


def build(cache: Path, target: str) -> Path:
    """Configure and build a test program with the sanitizers, in a folder that later runs use again."""
    key = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    folder = cache / "build" / f"{key}-sanitizers"
    scripts = sysconfig.get_path("scripts")
    path = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    # The patched source that the package was built from.
    env = os.environ | {"PATH": path, "RESTKV_CACHE": str(cache)}
    configure = [
        "cmake",
        "-S",
        str(ROOT / "native"),
        "-B",
        str(folder),
        "-G",
        "Ninja",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DRESTKV_SANITIZE=ON",
        "-DRESTKV_BUILD_TESTS=ON",
    ]
    for command in (configure, ["cmake", "--build", str(folder), "--target", target]):
        program = shutil.which(command[0], path=path)
        assert program, "cmake is not installed; run the tests with `python3 tools/test.py`"
        done = subprocess.run([program, *command[1:]], env=env, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return folder / "bin" / target


def run(program: Path, *arguments: str) -> None:
    """Run a test program; a report of a sanitizer or a failed check fails the test."""
    # Leaks are looked for through ptrace, which containers may forbid.
    env = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run([str(program), *arguments], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert "runtime error" not in done.stderr and "AddressSanitizer" not in done.stderr
    assert ", 0 failed" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="the sanitizers are those of GCC and Clang")
def test_stages_under_sanitizers(build_cache: Path) -> None:
    run(build(build_cache, "restkv-tests"))


@pytest.mark.skipif(os.name == "nt", reason="the sanitizers are those of GCC and Clang")
def test_cache_under_sanitizers(build_cache: Path, tmp_path: Path) -> None:
    families = ("llama", "gemma3", "gpt-oss")
    paths = [models.write_random(tmp_path / f"{name}.gguf", name, seed=1, n_head=4) for name in families]
    run(build(build_cache, "restkv-cache-tests"), *map(str, paths))


@pytest.mark.skipif(os.name == "nt", reason="the sanitizers are those of GCC and Clang")
def test_memory_runs_out_at_every_place(build_cache: Path, tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "llama", seed=1, n_head=4, head_dim=32)
    run(build(build_cache, "restkv-no-memory-tests"), str(path))
