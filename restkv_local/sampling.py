"""How answers are drawn: bounds of sampling, and what a chat does where nobody says."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from .config import whole_in_range
from .errors import ConfigError

# Bounds of sampling. llama.cpp checks none, and computes with 32-bit floats: a temperature below TEMPERATURE_MIN makes
# numbers too large for them. 0 is the likeliest token.
TEMPERATURE_MIN = 1e-6
SAMPLING: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 1e3),
    "top_k": (-1, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repeat_penalty": (1e-2, 1e2),
    "frequency_penalty": (-1e2, 1e2),
    "presence_penalty": (-1e2, 1e2),
    "mirostat_mode": (0, 2),
    "mirostat_tau": (0.0, 1e2),
    "mirostat_eta": (0.0, 1e2),
}
_WHOLE = ("top_k", "mirostat_mode")
# How a chat draws its answers where neither the user nor the model's makers say: the defaults of llama-cpp-python's
# create_chat_completion.
CHAT_SAMPLING: dict[str, float] = {
    "temperature": 0.2, "top_p": 0.95, "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.0,
}  # fmt: skip
# Most tokens of an answer of a chat, unless the user says otherwise: about three pages.
CHAT_ANSWER = 2048
# An answer repeats itself when its end is one block of text so many times in a row, over so many characters at least.
REPEATED_TIMES = 4
REPEATED_CHARACTERS = 400


def check_sampling(options: Mapping[str, Any]) -> None:
    """Refuse options of sampling (names as in create_completion) that are no numbers or out of bounds."""
    for name, (low, high) in SAMPLING.items():
        if name not in options:
            continue
        value = options[name]
        if name in _WHOLE:
            whole_in_range(name, value, int(low), int(high))
        elif isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
            raise ConfigError(f"{name} must be a number from {low:g} to {high:g}; got {value!r}")
    if 0 < options.get("temperature", 0) < TEMPERATURE_MIN:
        got = options["temperature"]
        raise ConfigError(f"temperature must be 0 (the likeliest token) or at least {TEMPERATURE_MIN:g}; got {got!r}")
