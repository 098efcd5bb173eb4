"""How answers are drawn: what the user chose, else what the model's makers want, else the defaults of a chat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...config import SEED_MAX, in_range, whole_in_range
from ...errors import ConfigError
from ...sampling import CHAT_ANSWER, CHAT_SAMPLING, check_sampling

# What /set calls the fields of Sampling, and what else it takes for them.
NAMES = {
    "temperature": "temperature", "top-p": "top_p", "top-k": "top_k", "min-p": "min_p",
    "repeat-penalty": "repeat_penalty", "max-tokens": "max_tokens", "seed": "seed", "repetition": "repetition",
}  # fmt: skip
_ALSO = {"temp": "temperature", "num-predict": "max-tokens", "repetition-penalty": "repeat-penalty"}
REPETITIONS = ("stop", "allow")
_ANSWER_MAX = 2**31 - 1


def name_of(text: str) -> str:
    """The name in NAMES that a user means. Raises ConfigError."""
    plain = text.lower().lstrip("-").replace("_", "-")
    known = _ALSO.get(plain, plain)
    if known not in NAMES:
        raise ConfigError(f"there is no setting '{text}'; there are {', '.join(NAMES)}")
    return known


@dataclass(frozen=True)
class Sampling:
    """None leaves a value to `makers`, by the names of create_completion, and then to the defaults. max_tokens: of an
    answer; 0: until the model ends or the context is full. repetition: whether an answer that repeats itself is
    stopped."""

    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repetition: str = REPETITIONS[0]
    makers: Mapping[str, float] = field(default_factory=dict)

    @property
    def answer(self) -> int:
        """Most tokens of an answer; 0: no limit."""
        return CHAT_ANSWER if self.max_tokens is None else self.max_tokens

    @property
    def drawn(self) -> dict[str, float]:
        """The arguments of sampling that are used."""
        chosen = {name: getattr(self, name) for name in CHAT_SAMPLING if getattr(self, name) is not None}
        return {**CHAT_SAMPLING, **self.makers, **chosen}

    def options(self, attempt: int) -> dict[str, Any]:
        """Arguments of create_chat_completion; attempt moves the seed, so that a second try can differ."""
        chosen: dict[str, Any] = {"max_tokens": self.answer or None, **self.drawn}
        if self.seed is not None:
            # SEED_MAX itself is the wish for a new seed each time; the engine takes it for the number before it
            chosen["seed"] = (min(self.seed, SEED_MAX - 1) + attempt) % SEED_MAX
        return chosen

    def with_(self, name: str, text: str) -> Sampling:
        """A copy with one value as typed; "default" leaves it to makers and defaults. Raises ConfigError."""
        known = name_of(name)
        at = NAMES[known]
        if text == "default":
            return replace(self, **{at: getattr(Sampling(), at)})
        return replace(self, **{at: _value(known, at, text)})

    def rows(self) -> list[tuple[str, str]]:
        """Names and values, and who chose them."""
        used: dict[str, Any] = {**self.drawn, "max_tokens": self.answer or "no limit", "repetition": self.repetition}
        found = []
        for name, at in NAMES.items():
            value = used.get(at, "new each time" if self.seed is None else self.seed)
            by = "" if getattr(self, at) is not None else " (the model's makers)" if at in self.makers else " (default)"
            found.append((name, f"{value}{by}"))
        return found


def _value(name: str, at: str, text: str) -> Any:
    if at == "repetition":
        if text not in REPETITIONS:
            raise ConfigError(f"{name} must be {' or '.join(REPETITIONS)}; got '{text}'")
        return text
    whole = at in ("top_k", "max_tokens", "seed")
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise ConfigError(f"{name} must be a {'whole ' if whole else ''}number or default; got '{text}'") from None
    if at in CHAT_SAMPLING:
        try:
            check_sampling({at: value})
        except ConfigError as error:
            raise ConfigError(str(error).replace(at, name)) from None
    elif at == "seed":
        whole_in_range(name, value, 0, SEED_MAX)
    else:
        in_range(name, value, 0, _ANSWER_MAX)
    return value
