"""What changes logits before a token is drawn: the caller's processors, then biases of single tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError

Ids = npt.NDArray[np.intc]
Logits = npt.NDArray[np.float32]
Processor = Callable[[Ids, Logits], Logits]


def bias(biases: Mapping[Any, float], n_vocab: int) -> Processor:
    """A processor that adds to the logits of single tokens, by id. Raises ConfigError for an id that is none."""
    try:
        ids = np.array([int(token) for token in biases], dtype=np.int64)
        values = np.array([float(value) for value in biases.values()], dtype=np.float32)
    except (TypeError, ValueError):
        raise ConfigError("logit_bias takes a number for each token id") from None
    wrong = [int(token) for token in ids if not 0 <= token < n_vocab]
    if wrong:
        raise ConfigError(f"logit_bias: token {wrong[0]} is not one of the {n_vocab} of this model")

    def add(_ids: Ids, logits: Logits) -> Logits:
        changed = np.array(logits)
        changed[ids] += values
        return changed

    return add


def as_list(given: Processor | Sequence[Processor] | None) -> list[Processor]:
    """The processors of a call: none, one, or a list of them (LogitsProcessorList is one that can be called)."""
    if given is None:
        return []
    return [given] if callable(given) and not isinstance(given, list) else list(given)


class Processors:
    """Several processors as one. Its errors would be lost on the way through C: `check` raises the first one."""

    def __init__(self, given: Sequence[Processor]) -> None:
        self._all = list(given)
        self._error: BaseException | None = None

    def __call__(self, ids: Ids, logits: Logits) -> Logits:
        if self._error is None:
            try:
                for processor in self._all:
                    changed = np.asarray(processor(ids, logits), dtype=np.float32)
                    if changed.shape != logits.shape:
                        raise ConfigError(f"a logits_processor returned {changed.shape} values for {logits.shape}")
                    logits = changed
            except BaseException as error:  # raised by check()
                self._error = error
        return logits

    def check(self) -> None:
        """Raise what a processor raised."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
