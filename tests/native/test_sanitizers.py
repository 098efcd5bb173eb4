"""The native stages, and the cache inside llama_decode, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import models
from lib.setup.source import ROOT, series
from native_build import build


def run(cache: Path, program: str, *arguments: str) -> None:
    """Build and run a test program; a report of a sanitizer or a failed check fails the test."""
    path = build(cache, program) / "bin" / program
    # Leaks are looked for through ptrace, which containers may forbid.
    env = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run([path, *arguments], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert "runtime error" not in done.stderr and "AddressSanitizer" not in done.stderr
    assert ", 0 failed" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="the sanitizers are those of GCC and Clang")
def test_stages_under_sanitizers(build_cache: Path) -> None:
    run(build_cache, "restkv-tests")


@pytest.mark.skipif(os.name == "nt", reason="the sanitizers are those of GCC and Clang")
def test_cache_under_sanitizers(build_cache: Path, tmp_path: Path) -> None:
    families = ("llama", "gemma3", "gpt-oss")
    paths = [models.write_random(tmp_path / f"{name}.gguf", name, seed=1, n_head=4) for name in families]
    run(build_cache, "restkv-cache-tests", *map(str, paths))


@pytest.mark.skipif(os.name == "nt", reason="the sanitizers are those of GCC and Clang")
def test_memory_runs_out_at_every_place(build_cache: Path, tmp_path: Path) -> None:
    path = models.write_random(tmp_path / "model.gguf", "llama", seed=1, n_head=4, head_dim=32)
    run(build_cache, "restkv-no-memory-tests", str(path))


@pytest.mark.skipif(os.name == "nt", reason="the sanitizers are those of GCC and Clang")
def test_all_of_ours_and_all_that_is_patched_is_watched(build_cache: Path) -> None:
    folder = build(build_cache, "restkv-sanitized") / "CMakeFiles"
    objects = list(folder.glob("restkv-sanitized-*.dir/**/*.o"))
    sources = [path for path in (ROOT / "native").glob("*/**/*.cpp") if path.parent.name != "tests"]
    for patch in series():
        sources += map(Path, re.findall(r"^\+\+\+ b/(\S+\.cpp)", patch.read_text(encoding="utf-8"), re.MULTILINE))
    assert Path("src/llama-kv-cache.cpp") in sources
    assert {path.with_suffix("").parts[-2:] for path in objects} == {path.parts[-2:] for path in sources}
    for path in objects:
        data = path.read_bytes()
        assert b"__asan_" in data and b"__ubsan_" in data, path
