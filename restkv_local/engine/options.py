"""Checks and defaults of what an engine is made with."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .. import paths
from ..config import LLAMA_BOUNDS, THREADS_MAX, VOTERS_MAX, EvictConfig, whole_in_range
from ..errors import ConfigError
from ..native.binding import Llama

# Options of Llama that would break the cache, each with what to do instead.
_REFUSED = {
    "logits_all": "it takes n_ctx x n_vocab floats; logprobs of the answer work without it",
    "embedding": "an evicting cache is for text; use llama_cpp.Llama for embeddings",
    "draft_model": "a draft is rolled back over evicted cells; leave it out",
    "vocab_only": "there is nothing to evict without weights; use llama_cpp.Llama",
}
_OURS = {"type_k": "kv_type", "type_v": "kv_type"}
_GENERATE = tuple(inspect.signature(Llama.generate).parameters)[2:]  # behind self and tokens
_KNOWN = frozenset(inspect.signature(Llama.__init__).parameters) - {"self", "model_path", "kwargs"}



def check_options(evict: EvictConfig, options: dict[str, Any], **own: Any) -> None:
    """Refuse options for llama_cpp.Llama that are unknown or would break the cache, and those and `own` ones (arguments
    of Engine that go on to it) that are out of bounds. Raises ConfigError."""
    for name, value in options.items():
        if name in _OURS:
            raise ConfigError(f"{name} is set by {_OURS[name]} here")
        if name not in _KNOWN:
            raise ConfigError(f"unknown setting '{name}'; Engine takes its own settings and those of llama_cpp.Llama")
        if name in _REFUSED and value:
            raise ConfigError(f"{name} is not possible: {_REFUSED[name]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number; got {value!r}")
    for name, (low, high) in LLAMA_BOUNDS.items():
        if (number := {**options, **own}.get(name)) is not None:
            whole_in_range(name, number, low, high)
    if not options.pop("flash_attn", True):
        raise ConfigError("flash_attn=False is not possible: the cache is evicted in flash attention's layout")
    if evict.traits.votes and (options.get("n_ubatch") or 0) > VOTERS_MAX:
        raise ConfigError(
            f"method '{evict.method}' remembers {VOTERS_MAX} queries; set n_ubatch to at most {VOTERS_MAX}"
        )
    if options.get("lora_path") and evict.reads_wo:
        raise ConfigError("a LoRA may change W_o, whose matrices score the cells; set use_wo=False or merge the LoRA")


def default_threads() -> int:
    """Threads for single tokens: half of the logical cores of a larger machine, which share arithmetic units."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return n if n <= 4 else min(max(4, n // 2), THREADS_MAX)


def default_threads_batch() -> int:
    """Threads for many tokens at once: all logical cores."""
    return min(os.cpu_count() or 1, THREADS_MAX)


def by_name(args: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of Llama.generate behind the tokens, all by name."""
    return {**dict(zip(_GENERATE, args, strict=False)), **options}


def sampling_of(args: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of Llama.generate behind the tokens, by the names that create_completion has for them."""
    given = by_name(args, options)
    if "temp" in given:
        given["temperature"] = given["temp"]
    return given


def cache_folder() -> bytes | None:
    """Where matrices made from W_o are kept between runs; None when there is no such place."""
    folder = paths.cache_folder("wo")
    return None if folder is None else os.fsencode(folder)


def check_guide(guide: object) -> str | None:
    """A guide as it was given to a call. Raises ConfigError when it is no text."""
    if guide is None or isinstance(guide, str):
        return guide
    raise ConfigError(f"guide must be the text of a question, or None; got {guide!r}")


def last_question(messages: Sequence[Any]) -> str | None:
    """Text of the last user message; parts that are not text are left out."""
    for message in reversed(messages):
        if message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            return content
        return "\n".join(part["text"] for part in content or [] if part.get("type") == "text")
    return None
