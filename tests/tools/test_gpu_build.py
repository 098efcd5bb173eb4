"""tools/gpu_check.py without a device: what it builds, and the sizes that it measures."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from lib.device import backend, steps
from lib.setup import venv
from programs import program

GB = 10**9


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine with nothing on its PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(backend.ctypes.util, "find_library", lambda name: None)
    # another CUDA than the one that this machine may have
    monkeypatch.setattr(backend, "_FOLDERS", ())
    return {"PATH": str(tmp_path)}


def test_backend_by_what_is_found(bare: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(asked: str = "auto", system: str = "linux", **env: str) -> tuple[str, str]:
        found = backend.choose(asked, bare | env, system)
        return found.name, found.cmake_args

    assert chosen() == ("cpu", "")
    assert chosen(system="darwin") == ("metal", "")
    assert chosen("cpu", system="darwin") == ("cpu", "-DGGML_METAL=OFF")
    program(tmp_path, "nvidia-smi", "GPU 0: a card (UUID: GPU-1234)")
    found = backend.choose("auto", bare, "linux")
    assert found.name == "cpu" and "found GPU 0: a card, but no nvcc" in found.why and "1234" not in found.why
    program(tmp_path, "glslc")
    monkeypatch.setattr(backend.ctypes.util, "find_library", lambda name: f"lib{name}.so.1")
    # nothing to run it on but a software device
    monkeypatch.setattr(backend, "_NODES", tmp_path / "dri")
    assert chosen() == ("cpu", "")
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri" / "renderD128").touch()
    assert chosen() == ("vulkan", "-DGGML_VULKAN=ON")
    nvcc = program(tmp_path, "nvcc", "release 13.0")
    found = backend.choose("auto", bare, "linux")
    assert (found.name, found.cmake_args, found.environment) == ("cuda", "-DGGML_CUDA=ON", {"CUDACXX": str(nvcc)})
    # a card that does not answer is none
    program(tmp_path, "nvidia-smi", "no devices were found", 6)
    assert chosen()[0] == "vulkan"


def test_backend_that_was_asked_for_and_own_switches(bare: dict[str, str]) -> None:
    def chosen(asked: str, **env: str) -> tuple[str, str]:
        found = backend.choose(asked, bare | env, "linux")
        return found.name, found.cmake_args

    assert chosen("vulkan") == ("vulkan", "-DGGML_VULKAN=ON")
    assert chosen("cuda", CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=90") == (
        "cuda", "-DCMAKE_CUDA_ARCHITECTURES=90 -DGGML_CUDA=ON",
    )  # fmt: skip
    assert chosen("auto", CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_CUDA_NO_VMM=ON") == (
        "cuda", "-DGGML_CUDA=ON -DGGML_CUDA_NO_VMM=ON",
    )  # fmt: skip
    assert chosen("auto", RESTKV_LIB_PATH="/a/build")[0] == "library"


def test_other_switches_build_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for switches in ("", "-DGGML_CUDA=ON", "-DGGML_VULKAN=ON"):
        monkeypatch.setenv("CMAKE_ARGS", switches)
        folders.append(venv.build_folder("abc"))
    assert len(set(folders)) == 3 and folders[0].name == "abc"


@pytest.mark.parametrize(
    ("free", "disk", "layers"),
    [(80 * GB, 60 * GB, 32), (8 * GB, 60 * GB, 9), (GB, 60 * GB, 1), (80 * GB, 3 * GB, 8)],
)
def test_layers_that_fit(free: int, disk: int, layers: int) -> None:
    options = Namespace(quick=False, shape=None, layers=None, text=None)
    found = steps.sizes(options, {"memory_free": free, "description": "A card"}, disk)
    assert found == {
        "shape": "llama-3.1-8b", "layers": layers, "text": 131072, "budget": 4096, "reserve": 2048, "read": 32768
    }  # fmt: skip


def test_size_of_a_layer_is_that_of_the_shape() -> None:
    from restkv_local.models.shapes import SHAPES, bytes_per_cell, data_bytes

    shape = SHAPES[steps._SHAPE]
    one, two = (data_bytes(shape, n, steps._TYPE) for n in (1, 2))
    assert two - one == pytest.approx(steps._LAYER, rel=0.01)
    assert one - (two - one) == pytest.approx(steps._REST, rel=0.02)
    assert bytes_per_cell(shape, 1) * steps._TEXT == steps._LAYER_CELLS


def test_small_sizes_and_wishes() -> None:
    options = Namespace(quick=False, shape=None, layers=None, text=None)
    assert steps.sizes(options, None, GB)["shape"] == "tiny"
    gpu: dict[str, Any] = {"memory_free": 80 * GB, "description": "A card"}
    assert steps.sizes(options, gpu | {"description": "llvmpipe (LLVM 15.0.6, 256 bits)"}, GB)["shape"] == "tiny"
    assert steps.sizes(Namespace(**vars(options) | {"quick": True}), gpu, GB)["shape"] == "tiny"
    wishes = Namespace(quick=False, shape="gemma-7b", layers=2, text=8192)
    found = steps.sizes(wishes, gpu, 60 * GB)
    assert (found["shape"], found["layers"], found["text"], found["budget"]) == ("gemma-7b", 2, 8192, 4096)
    assert steps.sizes(wishes, None, 60 * GB) == found | {"read": 8192}, "also without a GPU"
