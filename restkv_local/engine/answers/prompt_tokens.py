"""The tokens of a completion's prompt: those that begin and end a text, and the gap that a suffix leaves."""

from __future__ import annotations

import warnings
from typing import Any

from ...errors import ConfigError

# Keeps a tokenizer from putting a space of its own before a suffix; two tokens.
_MARK = "☺"
_MARK_TOKENS = 2


def prompt_tokens(engine: Any, prompt: str | list[int], suffix: str | None) -> list[int]:
    """Tokens of a prompt. A list is taken as it is. suffix: the text after the gap that the model fills.

    Raises ConfigError for a suffix when the model has no tokens that mark a gap.
    """
    model = engine._model
    if suffix is None:
        if not isinstance(prompt, str):
            return list(prompt)
        tokens = [*_first(model), *_text(engine, prompt, special=True), *_last(model)]
    else:
        before, after, middle = model.token_prefix(), model.token_suffix(), model.token_middle()
        if -1 in (before, after, middle):
            raise ConfigError("this model has no tokens for the gap before a suffix; leave suffix out")
        start = [before, *(_text(engine, prompt, special=False) if isinstance(prompt, str) else prompt)]
        end = [after, *_suffix(engine, suffix)]
        parts = [end, start] if engine.spm_infill else [start, end]
        tokens = [*_first(model), *parts[0], *parts[1], middle, *_last(model)]
    if tokens[:2] == [model.token_bos()] * 2:
        warnings.warn(
            "the prompt begins twice with the token that begins a text; leave it out of the prompt",
            RuntimeWarning,
            stacklevel=4,
        )
    return tokens


def _text(engine: Any, text: str, special: bool) -> list[int]:
    return list(engine.tokenize(text.encode("utf-8"), add_bos=False, special=special)) if text else []


def _suffix(engine: Any, suffix: str) -> list[int]:
    if suffix and engine.metadata.get("tokenizer.ggml.add_space_prefix", "true") == "true":
        return _text(engine, _MARK + suffix, special=False)[_MARK_TOKENS:]
    return _text(engine, suffix, special=False)


def _first(model: Any) -> list[int]:
    token = model.token_cls() if model.token_cls() != -1 else model.token_bos()
    return [token] if model.add_bos_token() and token != -1 else []


def _last(model: Any) -> list[int]:
    if not model.add_eos_token() and model.token_sep() == -1:
        return []
    return [model.token_sep() if model.token_sep() != -1 else model.token_eos()]
