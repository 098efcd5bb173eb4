"""How near the evicted cache's predictions are to the full one's, along a given continuation of a text.

KL(full || evicted) in nats and agreement of the likeliest token, each a mean over the continuation's positions, and the
mean log-probability of its tokens. The full cache's log-probabilities wait in a file that has no name, in float32:
4 bytes x n_vocab x continuation for each sample of one context and seed. In memory are those of one sample, in
double precision a few rows at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .grid import Grid, Setting, pairs
from .reading import log_softmax
from .results import Record
from .run import Batch, Case
from .texts import Passage, passages

Engine = Any
Rows = npt.NDArray[np.float32]
CONTINUATION = 64
# Rows that are in double precision at a time.
_BLOCK = 8
_SMALL = 256


class Scratch:
    """Arrays of one shape by name, in a file that vanishes with this object or the program."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.of: tuple[int, int] | None = None  # context and seed of what is kept

    def put(self, name: str, rows: Rows) -> None:
        """Keep an array; one of the same name is replaced where it lies, if the shapes agree."""
        place, shape = self._places.get(name, (-1, ()))
        if shape != rows.shape:
            place = self._file.seek(0, 2)
        self._file.seek(place)
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self._places[name] = (place, rows.shape)

    def get(self, name: str) -> Rows:
        """An array that was kept."""
        place, shape = self._places[name]
        self._file.seek(place)
        n = int(np.prod(shape)) * 4
        return np.frombuffer(self._file.read(n), dtype=np.float32).reshape(shape)

    def clear(self) -> None:
        """Forget all; the file becomes empty."""
        self._file.seek(0)
        self._file.truncate()
        self._places.clear()


def batches(
    grid: Grid,
    make: Callable[..., Engine],
    folder: Path,
    *,
    files: Sequence[str],
    kinds: Sequence[str],
    continuation: int,
    samples: int,
    options: Mapping[str, Any],
) -> list[Batch]:
    """The cases of all contexts and seeds. folder: where the full cache's figures wait. Raises ConfigError."""
    engine = grid.load(make, grid.settings(grid.seeds[0])[0], _SMALL)
    try:

        def tokenize(text: bytes) -> list[int]:
            tokens: list[int] = engine.tokenize(text, add_bos=True, special=False)
            return tokens

        found = []
        scratch = Scratch(folder)
        for context, seed in pairs(grid.contexts, grid.seeds):
            texts = passages(files, kinds, context + continuation, samples, seed, tokenize)
            cases = [_case(text, context, seed, scratch, options) for text in texts]
            found.append(Batch(context, seed, cases, same_batches=True))
        return found
    finally:
        engine.close()


def _case(text: Passage, context: int, seed: int, scratch: Scratch, options: Mapping[str, Any]) -> Case:
    prompt, following = text.tokens[:context], text.tokens[context:]

    def measure(engine: Engine, setting: Setting) -> Record:
        rows = predictions(engine, following.tolist())
        name = text.id
        if setting.full:
            if scratch.of != (context, seed):  # those of the last context are not needed again
                scratch.clear()
                scratch.of = (context, seed)
            scratch.put(name, rows)
        return {"scores": compare(rows if setting.full else scratch.get(name), rows, following.tolist())}

    return Case(
        task="fidelity",
        options=options,
        sample=text.id,
        labels={"kind": text.kind},
        prompt=prompt,
        guide=None,
        positions=len(text.tokens),
        measure=measure,
        yardstick=True,
    )


def predictions(engine: Engine, following: Sequence[int]) -> Rows:
    """Log-probabilities [len(following), n_vocab] before each of the tokens that follow what the engine has read."""
    first = np.array(engine.scores[engine.n_tokens - 1], dtype=np.float32)[None, :]
    rest = engine.read_logits(following[:-1]) if len(following) > 1 else first[:0]
    rows = np.concatenate([first, rest])
    for start in range(0, len(rows), _BLOCK):
        rows[start : start + _BLOCK] = log_softmax(rows[start : start + _BLOCK])
    return rows


def compare(full: Rows, evicted: Rows, following: Sequence[int]) -> dict[str, float]:
    """kl: mean of KL(full || evicted) in nats; top1: share of positions with the same likeliest token; log_prob: mean
    log-probability of the tokens. full, evicted: log-probabilities [n, n_vocab]; following: the n tokens."""
    kl: list[float] = []
    for start in range(0, len(full), _BLOCK):
        p = full[start : start + _BLOCK].astype(np.float64)
        q = evicted[start : start + _BLOCK].astype(np.float64)
        kl += (np.exp(p) * (p - q)).sum(axis=-1).tolist()
    same = full.argmax(axis=-1) == evicted.argmax(axis=-1)
    log_prob = evicted[np.arange(len(following)), np.asarray(following)].astype(np.float64)
    # KL of nearly equal distributions can come out as a negative rounding error.
    return {"kl": max(0.0, float(np.mean(kl))), "top1": float(same.mean()), "log_prob": float(log_prob.mean())}
