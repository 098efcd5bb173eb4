"""LoRA files, checked before the model is loaded: llama_cpp goes on without an unusable one and crashes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import ModelError

_MAGIC = b"GGUF"


def check_lora(path: str | os.PathLike[str], arch: str) -> None:
    """Raise ModelError for a file that is no LoRA for models of an architecture."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(_MAGIC))
    except FileNotFoundError:
        raise ModelError(f"there is no file {file}; check lora_path") from None
    except OSError as error:
        raise ModelError(f"lora_path: {file} cannot be read: {error.strerror or error}") from None
    if magic != _MAGIC:
        raise ModelError(f"lora_path: {file} is no GGUF file; convert it with llama.cpp's convert_lora_to_gguf.py")
    found = _settings(file)
    if (found["general.type"], found["adapter.type"]) != ("adapter", "lora"):
        raise ModelError(f"lora_path: {file} is a GGUF file, but no LoRA; a whole model is given by model_path")
    if found["general.architecture"] != arch:
        raise ModelError(
            f"lora_path: {file} is for '{found['general.architecture']}' models, and this one is '{arch}'; "
            f"take the LoRA that was trained on it"
        )


def _settings(file: Path) -> dict[str, str | None]:
    import gguf

    try:
        fields = gguf.GGUFReader(str(file)).fields
    except Exception as error:  # of a reader that checks nothing
        raise ModelError(f"lora_path: {file} is cut off or damaged ({error}); convert it again") from None
    return {name: _text(fields.get(name)) for name in ("general.type", "adapter.type", "general.architecture")}


def _text(field: Any) -> str | None:
    import gguf

    if field is None or field.types[:1] != [gguf.GGUFValueType.STRING]:
        return None
    return bytes(field.parts[field.data[0]]).decode("utf-8", "replace")
