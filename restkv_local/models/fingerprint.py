"""What tells one model from another, and a model from its fine-tunes."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from .. import native


def fingerprint(path: str | os.PathLike[str]) -> str:
    """The fingerprint of a GGUF file (the first file of a split model, or a LoRA): a short text, the same for the same
    metadata and tensors, in one file or in several.

    Of every tensor some bytes are read, all of a small one, so it takes milliseconds. Raises ModelError for a file that
    cannot be read.
    """
    text = ctypes.create_string_buffer(native.TEXT_MAX)
    native.check(native.lib().restkv_fingerprint(os.fsencode(Path(path)), text, len(text)))
    return text.value.decode("ascii")
