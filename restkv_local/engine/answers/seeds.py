"""Seeds of sampling: a number that repeats, or none, which draws another one each time."""

from __future__ import annotations

import random

from ...config import SEED_MAX
from ...errors import ConfigError

# llama.cpp takes this number as the wish for a new seed each time.
RANDOM = SEED_MAX


def fixed(seed: int | None) -> int:
    """A seed as llama.cpp takes it: None and -1 are a new one each time, any other repeats. Raises ConfigError."""
    if seed is None or seed == -1:
        return RANDOM
    if not 0 <= seed <= SEED_MAX:
        raise ConfigError(f"seed {seed} is out of range; give 0 to {SEED_MAX}, or None for a new one each time")
    return SEED_MAX - 1 if seed == RANDOM else seed


def following(seed: int) -> int:
    """The seed of the next answer of an engine that has one: another, and the same in every run."""
    return seed if seed == RANDOM else fixed(random.Random(seed).randint(0, 2**32) % 2**32)
