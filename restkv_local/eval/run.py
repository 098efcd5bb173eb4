"""Runs cases through every setting of a grid and appends what comes out."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..bench.origin import device, versions
from ..config import DEFAULT_BATCH, EVAL_STATE_BYTES
from ..plan.machine import free_memory
from .grid import Grid, Setting, StateKind, cache_record, model_record, state_kind
from .prompt import Tokens, shared_length
from .reading import Reader, States
from .results import Record, ResultFile

Engine = Any
# Batches are cut so that one ends where the shared part does, when the prompts agree within so many tokens.
_TUNED_WITHIN = 256
_BATCH_MIN = 64
# Tokens of a prompt that are never shared: one alone would be read as a token of an answer, which evicts before it.
_LAST = 2


class Progress(Protocol):
    """Where a run tells how far it is; drawing is the caller's."""

    def total(self, n: int) -> None:
        """Measurements of the whole grid."""

    def step(self, text: str, n: int = 1) -> None:
        """So many measurements are done (or were there); what runs now."""

    def say(self, text: str) -> None:
        """A sentence for the user."""


@dataclass(frozen=True)
class Case:
    """A prompt and what is measured behind it.

    options: settings of the task that change its samples. positions: most that reading and measuring take.
    measure(engine, setting): called when the prompt was read; returns parts of the record, "scores" among them.
    yardstick: the full cache's run leaves behind what the other settings need, so it is repeated in a resumed run.
    """

    task: str
    options: Mapping[str, Any]
    sample: str
    labels: Mapping[str, Any]
    prompt: Tokens
    guide: str | None
    positions: int
    measure: Callable[[Engine, Setting], Record]
    yardstick: bool = False

    def record(self, context: int, seed: int, setting: Setting, model: Record) -> Record:
        """The record without what is measured."""
        return {
            "task": self.task,
            "options": dict(self.options),
            "context": context,
            "seed": seed,
            "sample": self.sample,
            "labels": dict(self.labels),
            "setting": setting.record(),
            "model": model,
        }


@dataclass(frozen=True)
class Batch:
    """Cases of one context and seed. same_batches: the full cache reads in the same batches as the others, for figures
    that compare logits; otherwise it reads as llama.cpp does by default, unless questions share documents."""

    context: int
    seed: int
    cases: Sequence[Case]
    same_batches: bool = False

    @property
    def n_ctx(self) -> int:
        """Positions that an engine needs."""
        return max(case.positions for case in self.cases)


def run(
    grid: Grid, batches: Sequence[Batch], make: Callable[..., Engine], results: ResultFile, progress: Progress
) -> None:
    """Run every batch through every setting. `make` is the class of the engine. What is in `results` is skipped.

    Raises what the engine raises; the records so far are in the file.
    """
    batches = [batch for batch in batches if batch.cases]
    progress.total(sum(len(batch.cases) * len(grid.settings(batch.seed)) for batch in batches))
    model: Record | None = None
    for batch in batches:
        limit = free_memory()
        states = States(EVAL_STATE_BYTES if limit is None else min(EVAL_STATE_BYTES, limit // 2), StateKind.serves)
        settings = grid.settings(batch.seed)
        if model is None:
            model = _model(grid, settings[0], make)
        todo = {
            number: [case for case in batch.cases if not results.has(case.record(batch.context, batch.seed, s, model))]
            for number, s in enumerate(settings)
        }
        left = {case.sample + case.task for cases in todo.values() for case in cases}
        for number, setting in enumerate(settings):
            cases = todo[number]
            progress.step(setting.title, len(batch.cases) - len(cases))
            if setting.full:
                again = [case for case in batch.cases if case.yardstick and case.sample + case.task in left]
                cases = [case for case in batch.cases if case in cases or case in again]
            if cases:
                _run_setting(grid, batch, setting, cases, todo[number], make, results, progress, states, model)


def _model(grid: Grid, setting: Setting, make: Callable[..., Engine]) -> Record:
    engine = grid.load(make, setting, 1)
    try:
        return model_record(engine)
    finally:
        engine.close()


def _run_setting(
    grid: Grid,
    batch: Batch,
    setting: Setting,
    cases: Sequence[Case],
    new: Sequence[Case],
    make: Callable[..., Engine],
    results: ResultFile,
    progress: Progress,
    states: States,
    model: Record,
) -> None:
    exact = setting.evict.prefill == "exact" and not setting.full
    # Questions about one document: the full cache reads as exact does, instead of up to a batch again for each.
    alike = setting.full and set(grid.prefills) == {"exact"} and _documents(batch.cases)
    n_batch = DEFAULT_BATCH
    if exact or alike or batch.same_batches:
        n_batch = tuned_batch(_ends(batch.cases))
    engine = grid.load(make, setting, batch.n_ctx, n_batch)
    try:
        origin = {"device": device(), "versions": versions(), "threads": engine.n_threads, **grid.devices()}
        reader = Reader(engine, states)
        for number, case in enumerate(cases):
            progress.step(setting.title, 0)
            engine.guide = case.guide
            kind = state_kind(engine, setting, case.guide or "")
            reader.kind = kind
            following = cases[number + 1] if number + 1 < len(cases) else None
            shared = _shared(engine, batch, case, following, across=kind.across)
            start = time.perf_counter()
            reader.read(case.prompt.tolist(), shared)
            read = time.perf_counter()
            cache = cache_record(engine, len(case.prompt))
            measured = case.measure(engine, setting)
            if not len(case.prompt):  # the measuring was the reading
                cache = cache_record(engine, case.positions)
            if case not in new:
                continue
            record = case.record(batch.context, batch.seed, setting, model) | {"cache": cache} | measured
            record["prompt_tokens"] = len(case.prompt)
            record["seconds"] = {"read": round(read - start, 3), "measure": round(time.perf_counter() - read, 3)}
            date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            record["run"] = {**origin, "backend": engine.report().backend, "date": date}
            results.add(record)
            progress.step(setting.title)
    finally:
        engine.close()


def _shared(engine: Engine, batch: Batch, case: Case, following: Case | None, *, across: bool) -> int:
    """How many of a prompt's first tokens will be read again. across: by other settings too."""
    # What is saved must not depend on which cases are left in a resumed run, but only costs time if it does.
    if across:
        return _end_of(case, batch.cases)
    if following is None:
        return 0
    shared = min(shared_length(case.prompt, following.prompt), len(following.prompt) - _LAST)
    if engine.plan.guide:
        # So near to its end the next prompt may be read without the eviction that this one needed.
        shared = min(shared, len(following.prompt) - engine.plan.guide - 1)
    return max(0, shared)


def _end_of(case: Case, cases: Sequence[Case]) -> int:
    """Tokens that a prompt shares with a neighbour, or all but the last ones where it has no like."""
    return max(0, min(_document(case, cases) or len(case.prompt), len(case.prompt) - _LAST))


def _document(case: Case, cases: Sequence[Case]) -> int:
    """Tokens of the document that a prompt shares with a neighbour, or 0 for a text of its own."""
    place = next(i for i, other in enumerate(cases) if other is case)
    near = [cases[i] for i in (place - 1, place + 1) if 0 <= i < len(cases)]
    shared = max((shared_length(case.prompt, other.prompt) for other in near), default=0)
    # A text of its own shares no more than how every prompt begins.
    return shared if shared > len(case.prompt) // 2 else 0


def _documents(cases: Sequence[Case]) -> bool:
    """Whether every prompt shares a document with a neighbour."""
    return all(_document(case, cases) for case in cases)


def _ends(cases: Sequence[Case]) -> list[int]:
    return [_end_of(case, cases) for case in cases]


def tuned_batch(ends: Sequence[int]) -> int:
    """A batch size, at most the default, with which a batch ends at or shortly before each of these positions.

    Chunks do not change an exact prefill; a batch that ends near the shared part's end leaves little to read again.
    """
    low = min(ends, default=0)
    if low < _BATCH_MIN or max(ends) - low > _TUNED_WITHIN:
        return DEFAULT_BATCH
    return low // -(-low // DEFAULT_BATCH)
