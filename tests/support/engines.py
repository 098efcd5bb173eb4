"""Small engines of the tests of the engine, their text, and what is asked of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from restkv_local.config import EvictConfig

if TYPE_CHECKING:
    from restkv_local import Engine

# Engines here run on one thread: two would wait for each other at every operation when the machine is busy.
SMALL = EvictConfig(budget=96, reserve=160)
TEXT = (
    "The harbour of Lindau lies on the southern shore. Ships bring salt, wool and timber from the mountains. "
    "The keeper of the lighthouse writes the weather into a blue book every evening. "
    "In spring the market opens at six, and the baker sells bread with seeds. "
) * 16
# For models with random weights.
TINY = EvictConfig(budget=64, reserve=64)
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('No tools here!') }}{% endif %}"
    "{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}assistant:"
)


def answer(engine: Engine, prompt: list[int], n: int) -> list[int]:
    return list(islice(engine.generate(prompt, temp=0.0), n))


def logits(engine: Engine) -> np.ndarray:
    return np.asarray(engine.scores[-1, :])


def load(path: Path, **options: Any) -> Engine:
    from restkv_local import Engine

    return Engine(path, **{"n_threads": 1, "n_ctx": 512, "evict": TINY, **options})
