"""The library through ctypes: the mirror of restkv.h, and how it is found and loaded."""

from __future__ import annotations

import ctypes as C
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from restkv_local import location, native
from restkv_local.config import EvictConfig
from restkv_local.errors import ConfigError, EvictionError, LibraryError, ModelError
from score_cases import native_missing

HEADER = Path(__file__).parents[2] / "native" / "restkv.h"
PARTS = tuple(HEADER.with_name(f"restkv_{part}.h") for part in ("arrays", "sessions"))

needs_library = pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))

# Structures of the mirror and their names in restkv.h.
MIRROR: dict[str, type[C.Structure]] = {
    "restkv_params": native.Params,
    "restkv_model_info": native.ModelInfo,
    "restkv_stats": native.Stats,
    "restkv_archive_params": native.ArchiveParams,
    "restkv_archive_stats": native.ArchiveStats,
    "restkv_archive_rows": native.ArchiveRows,
    "restkv_memory": native.Memory,
    "restkv_event": native.Event,
    "restkv_score_args": native.ScoreArgs,
    "restkv_score_out": native.ScoreOut,
    "restkv_recall_args": native.RecallArgs,
    "restkv_device": native.Device,
    "restkv_device_times": native.DeviceTimes,
}


def test_mirror_has_the_layout_of_the_header(tmp_path: Path) -> None:
    """Size of every structure, and offset and size of every field, as a C compiler sees them."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler")
    lines = []
    for name, structure in MIRROR.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field, *_ in structure._fields_:
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *) 0)->{field}));'
            )
    source = tmp_path / "layout.c"
    source.write_text(f'#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{\n' + "\n".join(lines) + "\n}\n")
    program = tmp_path / "layout"
    subprocess.run([compiler, "-o", program, source], check=True)
    seen = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split("\n")[:-1]

    expected = []
    for name, structure in MIRROR.items():
        expected.append(f"{name} {C.sizeof(structure)}")
        for field, *_ in structure._fields_:
            descriptor = getattr(structure, field)
            expected.append(f"{name}.{field} {descriptor.offset} {descriptor.size}")
    assert seen == expected


def test_mirror_has_every_field_and_function_of_the_header() -> None:
    whole = HEADER.read_text()
    for part in PARTS:
        whole = whole.replace(f'#include "{part.name}"', part.read_text())
    text = re.sub(r"//.*", "", whole)
    for name, structure in MIRROR.items():
        body = re.search(rf"typedef struct {name} \{{(.*?)\}}", text, re.S)
        assert body is not None
        fields = re.findall(r"(\w+)(?:\[\w+\])?;", body[1])
        assert fields == [field for field, *_ in structure._fields_]
    functions = re.findall(r"^RESTKV_API .*?(restkv_\w+)\(", text, re.M)
    assert functions == list(native.SIGNATURES)
    assert f"#define RESTKV_ABI_VERSION {native.ABI_VERSION}\n" in HEADER.read_text()
    enums = dict(re.findall(r"RESTKV_(\w+)\s*= (\d+),", text))
    for kind, names, numbers in (
        ("POOLING", "NONE AVG MAX ADAPTIVE", native.POOLING),
        ("METRIC", "AFTER BEFORE", native.METRIC_MODE),
        ("INDICATOR", "RECONSTRUCTION ATTENTION ATTENTION_V", native.INDICATOR),
        ("ROWS", "EMA MEAN INVERTED_EMA LAST MAX SUM", native.ROWS),
        ("REDUCE", "NONE MEAN MAX", native.REDUCE),
        ("STAGES", "AUTO FUSED GRAPH HOST", native.STAGES),
        ("ALLOCATION", "UNIFORM PYRAMID ADA", native.ALLOCATION),
        ("PLACE", "NONE RAM FILE", native.PLACE),
    ):
        assert [int(enums[f"{kind}_{name}"]) for name in names.split()] == list(numbers.values()), kind
    assert list(native.INDICATOR) == ["reconstruction", "attention", "attention-value-norm"]
    assert list(native.ROWS) == ["ema", "mean", "inverted-ema", "last", "max", "sum"]
    assert list(native.POOLING) == ["none", "avgpool", "maxpool", "adaptive"]
    for name in ("OK", "INVALID", "UNSUPPORTED", "NOTHING", "IO", "NO_MEMORY", "GONE", "STATE", "ARCHIVE"):
        assert getattr(native, name) == int(enums[name])


@pytest.fixture
def fresh_loader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """native.lib() forgets what it loaded, before and after; llama_cpp, which other tests import, is out of sight."""
    for name in [name for name in sys.modules if name.split(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, name)
    native.lib.cache_clear()
    yield
    native.lib.cache_clear()


def test_import_loads_nothing() -> None:
    program = (
        "import sys, restkv_local.native, restkv_local.native.kernels\n"
        "assert 'llama_cpp' not in sys.modules and 'torch' not in sys.modules\n"
        "print(restkv_local.native.lib.cache_info().currsize)"
    )
    environment = {**os.environ, "RESTKV_LIB_PATH": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("0", "")


@pytest.mark.usefixtures("fresh_loader")
def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTKV_LIB_PATH", str(tmp_path))
    with pytest.raises(LibraryError, match=r"there is no llama library in .*: run 'pip install \.'"):
        native.lib()


def build_library(folder: Path, body: str) -> None:
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler")
    source = folder / "library.c"
    source.write_text(body)
    name = "libllama.dylib" if sys.platform == "darwin" else "libllama.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / name, source], check=True)


@pytest.mark.usefixtures("fresh_loader")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("int llama_max_devices(void) { return 1; }", "is a stock llama.cpp without eviction"),
        (
            "unsigned restkv_abi_version(void) { return 4711; }",
            f"has interface version 4711, this package needs {native.ABI_VERSION}",
        ),
        (
            f"unsigned restkv_abi_version(void) {{ return {native.ABI_VERSION}; }}",
            "is older than this package .* run 'pip install .' again",
        ),
    ],
)
def test_wrong_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str) -> None:
    build_library(tmp_path, body)
    monkeypatch.setenv("RESTKV_LIB_PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    with pytest.raises(LibraryError, match=words):
        native.lib()
    assert "LLAMA_CPP_LIB_PATH" not in os.environ


def test_llama_cpp_with_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_library(tmp_path, "int nothing;")
    monkeypatch.setenv("RESTKV_LIB_PATH", str(tmp_path))
    bindings = types.SimpleNamespace(_lib=types.SimpleNamespace(_name="/somewhere/libllama.so"))
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_cpp", bindings)  # type: ignore[arg-type]
    with pytest.raises(LibraryError, match="llama_cpp is already imported with /somewhere/libllama.so"):
        native.library_dir()
    (tmp_path / "link").symlink_to(tmp_path)
    bindings._lib._name = str(tmp_path / "link" / location.library_file(tmp_path).name)  # type: ignore[union-attr]
    assert native.library_dir() == tmp_path


@needs_library
def test_library_path_is_set_for_llama_cpp() -> None:
    assert native.lib() is native.lib()
    assert Path(os.environ["LLAMA_CPP_LIB_PATH"]) == native.library_dir()


@needs_library
def test_methods() -> None:
    found = dict(native.methods())
    assert {"restkv", "snapkv", "streamingllm", "random"} <= set(found)
    assert all(found.values())
    assert native.lib().restkv_method_name(len(found)) is None


def test_params_from_config() -> None:
    config = EvictConfig(method="streamingllm", sinks=6, alpha=None, reduce="max", seed=2**64 - 1, use_norm=True)
    p = native.params_from(config, budget=100, capacity=256, n_threads=3)
    assert (p.method, p.budget, p.capacity, p.window) == (b"streamingllm", 100, 256, 94)
    assert (p.alpha, p.reduce, p.seed, p.n_threads) == (-1.0, 2, 2**64 - 1, 3)
    assert (p.use_wo, p.use_norm, p.use_ema) == (1, 1, 1)
    assert native.params_from(EvictConfig(), budget=100, capacity=256, n_threads=0).window == EvictConfig().window


@needs_library
def test_check_raises_typed_errors() -> None:
    native.lib().restkv_clear_error()  # of another test
    native.check(native.OK)
    native.check(native.NOTHING)
    pairs = ((native.INVALID, ConfigError), (native.UNSUPPORTED, ModelError))
    for status, error in (*pairs, (native.IO, ModelError), (native.NO_MEMORY, EvictionError)):
        with pytest.raises(error, match=f"failed with status {status}"):
            native.check(status)
