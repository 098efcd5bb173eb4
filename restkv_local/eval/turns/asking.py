"""One document and one row: the text is read, then every question is asked, and what its answer finds is measured."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ConfigError, EvictionError
from ..prompt import Tokens, shared_length
from ..reading import forced
from ..results import Record
from .prompts import FRESH, Script, Turn
from .rows import EXACT, PER_LAYER, TWO_PASSES, Way

Engine = Any


@dataclass(frozen=True)
class Recalled:
    """What a recall for a question took. seconds: with the pass that runs the question first, where there is one.
    bytes: read from the archive. cells: that came from it, per layer and KV head."""

    seconds: float
    bytes: int
    cells: int


class Talk:
    """An engine that has read the text of a script, and is asked about it.

    stem_apart: the beginning of an answer is read as an answer is, token by token, and not with the question.
    """

    def __init__(self, engine: Engine, way: Way, script: Script, *, again: bool, stem_apart: bool = False) -> None:
        """Reads the text. again: it is needed more than once."""
        self._engine, self._way, self._script, self._stem_apart = engine, way, script, stem_apart
        self._first = next(iter(script.turns.values()))[0]
        self._held: list[int] = []
        self._state: Any = None
        self.layers = evicting_layers(engine)
        start = time.perf_counter()
        self._read_text()
        self.seconds = time.perf_counter() - start
        if again and not way.archive:
            self._state = engine.save_state()

    def ask_all(self, mode: str) -> Iterator[tuple[Turn, Record]]:
        """The turns of a mode with what was measured in each: parts of a record."""
        for number, turn in enumerate(self._script.turns[mode]):
            if number == 0 or mode == FRESH:
                self._back()
            yield turn, self._ask(turn)

    def _read_text(self) -> None:
        engine, exact = self._engine, self._way.text == EXACT
        self._held = self._first.prompt[: self._script.text].tolist()
        engine.reset()
        engine.guide = self._first.question.text
        with _reading(engine, "stream" if exact else self._way.text):
            engine.eval(self._held)
        if exact and engine.cells > engine.plan.budget:
            engine._evict()

    def _back(self) -> None:
        """To the end of the text. With an archive the cells stay those that the last question left."""
        text = self._script.text
        if len(self._held) == text:
            return
        del self._held[text:]
        if self._state is not None:
            self._engine.load_state(self._state)
        elif not self._cut(text):
            self._read_text()

    def _cut(self, position: int) -> bool:
        """Whether what follows a position could be removed; if not, the cache is of no use until it is cleared."""
        self._engine.n_tokens = position
        try:
            self._engine.read_logits([])
        except EvictionError:
            return False
        return True

    def _ask(self, turn: Turn) -> Record:
        engine, prompt = self._engine, turn.prompt.tolist()
        shared = shared_length(self._held, prompt)
        if shared < len(self._held) and not self._cut(shared):  # the chat format writes an answer with other tokens
            self._back()
            shared = self._script.text
        engine.guide = turn.question.text
        asked = prompt[shared : len(prompt) - turn.stem]
        stem = prompt[len(prompt) - turn.stem :]
        if not self._stem_apart:
            asked, stem = asked + stem, []
        start = time.perf_counter()
        recalled = self._read(asked)
        for token in stem:
            engine.eval([token])
        seconds = time.perf_counter() - start
        heads = found_share(engine, self.layers, turn.targets)
        answer = turn.answer.tolist()
        before = engine.report().decode_seconds
        tokens = forced(engine, answer)
        report = engine.report()
        self._held = prompt + answer[:-1]
        right = [all(token.likeliest for token in tokens[first:last]) for first, last in turn.parts]
        answering = report.decode_seconds - before
        timed = {"text": round(self.seconds, 3), "question": round(seconds, 4), "answer": round(answering, 4)}
        record: Record = {
            "scores": {
                "score": sum(right) / len(right),
                "log_prob": sum(token.log_prob for token in tokens),
                "found": float(np.mean([share for layer in heads for share in layer])) if heads else 1.0,
            },
            "found": heads,
            "reference_tokens": len(answer),
            "prompt_tokens": len(prompt),
        }
        if recalled is not None:
            timed["recall"] = round(recalled.seconds, 4)
            record["recall"] = {"bytes": recalled.bytes, "cells": recalled.cells}
        if report.answer_recalled:
            record["answered"] = {
                "tokens": len(answer) - 1,
                "recalled": report.answer_recalled,
                "layers": round(report.answer_recall_layers, 2),
            }
        return record | {"seconds": timed}

    def _read(self, tokens: list[int]) -> Recalled | None:
        engine, question = self._engine, self._way.question
        if self._way.reference:  # its times and copies say nothing about the engine
            engine.ask(tokens)
            return None
        if question == TWO_PASSES:
            report = engine.recall(tokens)
            with _reading(engine, "stream"):
                engine.eval(tokens)
            return Recalled(report.seconds, report.bytes, report.moved)
        if question == PER_LAYER:
            before = engine.report().archive.read_bytes
            with _reading(engine, "recall"):
                engine.eval(tokens)
            report = engine.report()
            return Recalled(report.recall_seconds, report.archive.read_bytes - before, report.copied_cells)
        engine.eval(tokens)
        return None


@contextlib.contextmanager
def _reading(engine: Engine, prefill: str) -> Iterator[None]:
    """The block in which an engine reads prompts by another mode, one that needs no other cells."""
    plan = engine.plan
    if plan.prefill != prefill and prefill in ("stream", "recall"):
        engine.plan = dataclasses.replace(plan, prefill=prefill)
    try:
        yield
    finally:
        engine.plan = plan


def evicting_layers(engine: Engine) -> list[tuple[int, int]]:
    """The layers that evict, each with its number of KV heads; none of a full cache."""
    if not engine.plan.evicts:
        return []
    n_layer = int(engine.metadata[f"{engine.plan.arch}.block_count"])
    found = []
    for layer in range(n_layer):
        heads = 0
        with contextlib.suppress(ConfigError):  # a layer that does not evict, or a head too many
            while True:
                engine.kept(layer, heads)
                heads += 1
        if heads:
            found.append((layer, heads))
    return found


def found_share(engine: Engine, layers: list[tuple[int, int]], targets: Tokens) -> list[list[float]]:
    """The part of some positions that is in the cells: per evicting layer and KV head."""
    return [
        [round(float(np.isin(targets, engine.kept(layer, head)).mean()), 4) for head in range(heads)]
        for layer, heads in layers
    ]
