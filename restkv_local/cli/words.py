"""What the engine says, in the words of a command line: options instead of the names that Python has for them."""

from __future__ import annotations

import re

# Names of Python that no sentence has by chance, and the options that mean the same.
_NAMES = {
    "n_ctx": "--context",
    "kv_type": "--kv-type",
    "archive_type": "--archive-type",
    "n_gpu_layers": "--gpu-layers",
    "main_gpu": "--main-gpu",
    "tensor_split": "--tensor-split",
    "n_threads": "--threads",
}
_SETTINGS = "chat_format|archive_type|archive|method|prefill|allocation|kv_type|budget|reserve"
_PARTS: tuple[tuple[str, str], ...] = (
    (r"\bset unverified=True in EvictConfig\b", "give --unverified"),
    (r"\bset archive to 'ram' or 'file' too\b", "give --archive ram or file too"),
    (r"prefill='stream' or 'guided'", "--prefill stream or guided"),
    # What can only be said from Python is left out.
    (r"; set chat_format, or use plain completion", ""),
    (r"if the model card asks for YaRN [^,]*, pass rope_scaling_type=2 and yarn_orig_ctx=\d+, else keep", "keep"),
)


def in_options(text: str) -> str:
    """A sentence of the engine with the options of the programs in it."""
    for pattern, instead in _PARTS:
        text = re.sub(pattern, instead, text)
    text = re.sub(rf"\b({_SETTINGS})(?:='|=| ')(\w+)\b'?", _option, text)
    return re.sub(rf"(?<![\w-])({'|'.join(_NAMES)})\b", lambda match: _NAMES[match[1]], text)


def _option(match: re.Match[str]) -> str:
    return f"--{match[1].replace('_', '-')} {match[2]}"
