"""Perplexity of a long text along its positions, while the cache stays inside its budget.

The text is read in pieces, and every token is predicted from what the cache still holds. In memory are the logits of
one piece: 4 bytes x n_vocab x PIECE, twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from .grid import Grid, Setting, pairs
from .prompt import as_tokens
from .reading import log_softmax
from .results import Record
from .run import Batch, Case
from .texts import Passage, passages

Engine = Any
PIECE = 64
WINDOWS = 8
_SMALL = 256


def batches(
    grid: Grid,
    make: Callable[..., Engine],
    *,
    files: Sequence[str],
    kinds: Sequence[str],
    windows: int,
    samples: int,
    options: Mapping[str, Any],
) -> list[Batch]:
    """The cases of all contexts and seeds. Raises ConfigError."""
    if grid.prefills != ("stream",):
        raise ConfigError("ppl predicts every token while it reads, so only --prefill stream has a meaning")
    if windows > min(grid.contexts) // 2:
        raise ConfigError(f"{windows} windows are too many for {min(grid.contexts)} tokens")
    engine = grid.load(make, grid.settings(grid.seeds[0])[0], _SMALL)
    try:

        def tokenize(text: bytes) -> list[int]:
            tokens: list[int] = engine.tokenize(text, add_bos=True, special=False)
            return tokens

        return [
            Batch(
                context,
                seed,
                [
                    _case(text, windows, options)
                    for text in passages(files, kinds, context, samples, seed, tokenize)
                ],
            )
            for context, seed in pairs(grid.contexts, grid.seeds)
        ]
    finally:
        engine.close()


def _case(text: Passage, windows: int, options: Mapping[str, Any]) -> Case:
    def measure(engine: Engine, setting: Setting) -> Record:
        losses = nll(engine, text.tokens.tolist())
        found = {"nll": float(losses.mean()), "perplexity": math.exp(float(losses.mean()))}
        return {"scores": found, "windows": by_window(losses, windows)}

    return Case(
        task="ppl",
        options=options,
        sample=text.id,
        labels={"kind": text.kind},
        prompt=as_tokens([]),
        guide=None,
        positions=len(text.tokens),
        measure=measure,
    )


def nll(engine: Engine, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Negative natural log-probability of each token but the first: [len(tokens) - 1]."""
    found = np.empty(len(tokens) - 1)
    for start in range(0, len(tokens) - 1, PIECE):
        piece = tokens[start : min(start + PIECE, len(tokens) - 1)]
        rows = engine.read_logits(piece)
        for i, row in enumerate(rows):  # one at a time in double precision
            found[start + i] = -log_softmax(row)[tokens[start + i + 1]]
    return found


def by_window(losses: np.ndarray[Any, np.dtype[np.float64]], windows: int) -> list[dict[str, float]]:
    """Means over equal stretches; `from` and `to`: positions of the predicted tokens, the last one excluded."""
    edges = [1 + round(i * len(losses) / windows) for i in range(windows + 1)]
    return [
        {"from": low, "to": high, "nll": float(losses[low - 1 : high - 1].mean())}
        for low, high in zip(edges, edges[1:], strict=False)
    ]
