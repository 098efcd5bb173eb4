"""Log-probabilities of an answer's tokens, in the shape of OpenAI's completions."""

from __future__ import annotations

import codecs
from typing import Any

import numpy as np
import numpy.typing as npt

# For each token: its text, its log-probability, and those of the best tokens by their text.
Scored = tuple[str, float, dict[str, float]]


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Log-probabilities [n_vocab] of logits [n_vocab]."""
    shifted: npt.NDArray[np.float32] = logits - logits.max()
    shifted -= np.log(np.exp(shifted).sum())
    return shifted


def best(values: npt.NDArray[np.float32], n: int) -> list[int]:
    """Indices of the n largest of a row, largest first."""
    n = min(n, len(values))
    if n <= 0:
        return []
    found = np.argpartition(values, -n)[-n:]
    return [int(i) for i in found[np.argsort(-values[found], kind="stable")]]


class LogprobList:
    """Collects them; `take` gives those since the last one. first: characters of text before the answer."""

    def __init__(self, first: int = 0) -> None:
        self._offset = first
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._waiting: list[tuple[int, Scored]] = []

    def add(self, piece: bytes, scored: Scored) -> None:
        """One more token, and the bytes that it adds to the text."""
        self._waiting.append((self._offset, scored))
        self._offset += len(self._decoder.decode(piece))

    def take(self) -> dict[str, Any] | None:
        """Those that wait, and none wait any more; None when there are none."""
        waiting, self._waiting = self._waiting, []
        return _as_dict(waiting) if waiting else None


def _as_dict(found: list[tuple[int, Scored]]) -> dict[str, Any]:
    return {
        "tokens": [text for _, (text, _, _) in found],
        "text_offset": [offset for offset, _ in found],
        "token_logprobs": [value for _, (_, value, _) in found],
        "top_logprobs": [top for _, (_, _, top) in found],
    }


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Several of them as one."""
    return {key: [value for part in parts for value in part[key]] for key in _as_dict([])}
