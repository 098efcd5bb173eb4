"""Reads prompts that share their beginnings, each beginning once, and asks for what a model thinks of an answer."""

from __future__ import annotations

import dataclasses
import operator
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError
from .prompt import as_tokens

Engine = Any


class States:
    """Saved states by what made them and the tokens that they hold; the least recently used go when `bytes_max` is
    passed. One state is kept whatever its size is.

    serves(kept, wanted): whether a state of one kind can be read where another is wanted.
    """

    def __init__(self, bytes_max: int, serves: Callable[[Any, Any], bool] = operator.eq) -> None:
        self.bytes_max = bytes_max
        self._serves = serves
        self._states: OrderedDict[tuple[Hashable, bytes], Any] = OrderedDict()

    def find(self, kind: Hashable, prompt: Sequence[int]) -> tuple[int, Any] | None:
        """The state that serves this kind and holds the longest beginning of a prompt, and that length."""
        whole = as_tokens(prompt).tobytes()
        fits = [key for key in self._states if self._serves(key[0], kind) and whole.startswith(key[1])]
        if not fits:
            return None
        key = max(fits, key=lambda key: len(key[1]))
        self._states.move_to_end(key)
        return len(key[1]) // 4, self._states[key]

    def keep(self, kind: Hashable, tokens: Sequence[int], state: Any) -> None:
        """Add a state."""
        key = (kind, as_tokens(tokens).tobytes())
        self._states[key] = state
        self._states.move_to_end(key)
        while len(self._states) > 1 and sum(map(_size, self._states.values())) > self.bytes_max:
            self._states.popitem(last=False)

    def drop(self, kind: Hashable) -> None:
        """Forget all states that would serve a kind."""
        for key in [key for key in self._states if self._serves(key[0], kind)]:
            del self._states[key]


def _size(state: Any) -> int:
    return int(getattr(state, "llama_state_size", 0))


class Reader:
    """Reads prompts that share their beginnings. A state is saved between two chunks of a prompt, where the next one
    would pass as well, so each prompt is read exactly as if it were the first: same chunks, same evictions.

    states: where states are kept; None keeps the last one. kind: what must be the same for a state to be used again.
    """

    def __init__(self, engine: Engine, states: States | None = None, kind: Hashable = None) -> None:
        self._engine = engine
        self._states = States(0) if states is None else states
        self.kind = kind

    def read(self, prompt: Sequence[int], shared: int) -> None:
        """Read a prompt; its first `shared` tokens will be needed again."""
        engine = self._engine
        tokens = [int(token) for token in prompt]
        n_held = self._restore(tokens)

        def keep(done: int, total: int) -> None:
            if done and shared - engine.n_batch < engine.n_tokens <= shared and engine.n_tokens > n_held:
                self._states.keep(self.kind, tokens[: engine.n_tokens], engine.save_state())

        engine.on_progress = keep
        try:
            engine.eval(tokens[n_held:])
        finally:
            engine.on_progress = None

    def _restore(self, tokens: list[int]) -> int:
        engine = self._engine
        found = self._states.find(self.kind, tokens)
        if found is None:
            engine.reset()
            return 0
        n_held, state = found
        if dataclasses.is_dataclass(state) and not isinstance(state, type):
            # Another engine may have saved it: `kind` says that nothing in it depends on what differs.
            state = dataclasses.replace(state, made_by=engine._origin())
        try:
            engine.load_state(state)
        except ConfigError:  # it does after all: read again, which is slower and right
            self._states.drop(self.kind)
            engine.reset()
            return 0
        return n_held


def log_softmax(logits: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Natural log-probabilities of the last axis, in double precision."""
    values = np.asarray(logits, dtype=np.float64)
    values = values - values.max(axis=-1, keepdims=True)
    result: np.ndarray[Any, np.dtype[np.float64]] = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return result


def answer_log_prob(engine: Engine, answer: Sequence[int]) -> float:
    """Natural log-probability of the tokens `answer` after what the engine has read, each one forced."""
    return sum(found.log_prob for found in forced(engine, answer))


class Forced(NamedTuple):
    """log_prob: natural, of a token that was forced; likeliest: whether it would have been written without that."""

    log_prob: float
    likeliest: bool


def forced(engine: Engine, answer: Sequence[int]) -> list[Forced]:
    """What the model thinks of each token of `answer` after what the engine has read and those before it. All but the
    last one are read."""
    found = []
    for i, token in enumerate(answer):
        if i:
            engine.eval([int(answer[i - 1])])
        logits = engine.scores[engine.n_tokens - 1]
        found.append(Forced(float(log_softmax(logits)[int(token)]), int(np.argmax(logits)) == int(token)))
    return found


def greedy(engine: Engine, max_tokens: int) -> list[int]:
    """The likeliest tokens after what the engine has read, up to the end of the answer; that token is left out."""
    found: list[int] = []
    while len(found) < max_tokens:
        token = int(np.argmax(engine.scores[engine.n_tokens - 1]))
        if _ends(engine, token):
            break
        found.append(token)
        if len(found) < max_tokens:
            engine.eval([token])
    return found


def _ends(engine: Engine, token: int) -> bool:
    import llama_cpp

    return bool(llama_cpp.llama_vocab_is_eog(engine._model.vocab, token))
