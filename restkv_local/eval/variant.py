"""Methods with settings of their own, as "restkv:kernel=5:pooling=avgpool": what a row of an evaluation is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..config import METHODS, EvictConfig
from ..errors import ConfigError

ALL = "all"
FULL = "full"
# The grid sets these for every row.
_OF_THE_GRID = ("budget", "reserve", "method", "prefill", "seed", "unverified")
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Variant:
    """A method, and settings of EvictConfig that differ from their defaults."""

    method: str
    changes: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """As it was asked for."""
        return ":".join([self.method, *(f"{name}={value}" for name, value in self.changes.items())])


def parse_variants(texts: Sequence[str]) -> tuple[Variant, ...]:
    """Variants of a list of names, each once; "all" is every method. Raises ConfigError.

    The full cache is never among them: it always runs, as the yardstick.
    """
    found: dict[str, Variant] = {}
    for text in texts:
        for variant in [Variant(name) for name in METHODS] if text == ALL else [_parse(text)]:
            if variant.method != FULL:
                found.setdefault(variant.name, variant)
    return tuple(found.values())


def _parse(text: str) -> Variant:
    method, *settings = text.strip().split(":")
    if method not in METHODS:
        raise ConfigError(f"'{method}' is not a method; known are {ALL}, {', '.join(METHODS)}")
    changes: dict[str, Any] = {}
    known = [known.name for known in fields(EvictConfig) if known.name not in _OF_THE_GRID]
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign or name not in known:
            raise ConfigError(
                f"'{setting}' in '{text}' is no setting of a method; write name=value with one of {', '.join(known)}"
            )
        # of these, "none" is a word of its own
        changes[name] = value if name in ("pooling", "archive") else _value(value)
    if method == FULL and changes:
        raise ConfigError("the full cache has no settings; give 'full' alone, or leave it out: it always runs")
    EvictConfig().with_(method=method, **changes)  # says what is wrong with a value
    return Variant(method, changes)


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
