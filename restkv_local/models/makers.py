"""How the makers of a model want its answers drawn: from the model's own file, or from a small table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import ConfigError
from ..sampling import check_sampling

# Keys of a file (llama.cpp's conversion writes them from the model's generation_config.json) and what create_completion
# calls the same.
_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repeat_penalty",
}
_WHOLE = ("top_k",)


@dataclass(frozen=True)
class Wishes:
    """What the makers say. sampling: by the names of create_completion; source: where they say so, "" where they say
    nothing; ignored: why values of the file are not used, or "". system: no wish of theirs, but the prompt that a chat
    starts with where that of the template was found to do harm, else None."""

    sampling: Mapping[str, float] = field(default_factory=dict)
    system: str | None = None
    source: str = ""
    ignored: str = ""


@dataclass(frozen=True)
class _Row:
    """names: matches the name of a model, in small letters with hyphens for blanks. template: a part of its chat
    template, where the name does not tell an instructed model from its base."""

    names: str
    wishes: Wishes
    template: str = ""


# The first that matches.
_TABLE = (
    _Row(
        r"smollm2",
        # With its template's own prompt the 135M model drifts off: asked for the capital of France it begins in French
        # ("L" 0.16, "The" 0.12). With an empty one it answers ("The" 0.53, "L" 0.11), better than with "You are a
        # helpful assistant." (0.19 and 0.17).
        Wishes({"temperature": 0.2, "top_p": 0.9}, "", "the model card of HuggingFaceTB/SmolLM2-135M-Instruct"),
        template="named SmolLM",
    ),
    _Row(
        r"qwen3.*(instruct|non-thinking)",
        Wishes(
            {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0},
            source="the model card of Qwen/Qwen3-4B-Instruct-2507",
        ),
    ),
    _Row(
        r"qwen3(?!.*(base|coder|embedding|reranker|vl))",
        Wishes(
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0},
            source="the model card of Qwen/Qwen3-8B, thinking",
        ),
    ),
    _Row(
        r"gemma-3.*\bit\b",
        Wishes(
            {"temperature": 1.0, "top_p": 0.95, "top_k": 64, "min_p": 0.0},
            source="generation_config.json of google/gemma-3-4b-it",
        ),
    ),
    _Row(
        r"llama-3.*instruct",
        Wishes(
            {"temperature": 0.6, "top_p": 0.9}, source="generation_config.json of meta-llama/Llama-3.1-8B-Instruct"
        ),
    ),
)


def wishes(metadata: Mapping[str, str], file_name: str = "") -> Wishes:
    """What the makers of a model say about drawing its answers.

    metadata: of the GGUF file, as text. file_name: of that file, where its metadata names no model. Values of the file
    go before those of the table; one that is no number, or out of the bounds of sampling, is left out.
    """
    named = f"{metadata.get('general.name', '')} {metadata.get('general.basename', '')} {file_name}"
    plain = re.sub(r"[\s_]+", "-", named.lower())
    template = metadata.get("tokenizer.chat_template", "")
    rows = (row for row in _TABLE if re.search(row.names, plain) and row.template in template)
    listed = next((row.wishes for row in rows), Wishes())
    own, ignored = _of_file(metadata)
    if own:
        return Wishes(own, listed.system, "the model's file", ignored)
    return Wishes(listed.sampling, listed.system, listed.source, ignored)


def _of_file(metadata: Mapping[str, str]) -> tuple[dict[str, float], str]:
    """Sampling that a file asks for, and why some of it is left out."""
    found: dict[str, float] = {}
    wrong = []
    for key, name in _KEYS.items():
        if key not in metadata:
            continue
        try:
            number = float(metadata[key])
            value = int(number) if name in _WHOLE else number
            check_sampling({name: value})
        except (ConfigError, ValueError, OverflowError):
            wrong.append(f"{key} = {metadata[key]}")
        else:
            found[name] = value
    return found, f"the model's file asks for {', '.join(wrong)}, which cannot be; it is left out" if wrong else ""
