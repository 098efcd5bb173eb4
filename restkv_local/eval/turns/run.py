"""Runs documents through every row and appends a record per question."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...bench.origin import device, versions
from ...config import CELL_PAD
from ...errors import ConfigError
from ..grid import Grid, cache_record, model_record, pairs
from ..results import Record, ResultFile
from ..run import Progress
from .asking import Talk
from .document import make as make_document
from .in_torch import in_torch
from .prompts import FRESH, Chat, Form, Plain, Script, Turn, frame, script
from .rows import Row, rows

Engine = Any
Make = Callable[..., Engine]
# Positions of the engine that only tokenizes.
_SMALL = 256


@dataclass(frozen=True)
class Plan:
    """What is asked. ways: rows by name. documents: of each kind, per context and seed. raw: plain text, also where the
    model has a chat format. stem_apart: see Talk. answering: see `rows`."""

    kinds: tuple[str, ...]
    ways: tuple[str, ...]
    modes: tuple[str, ...]
    questions: int
    documents: int
    raw: bool = False
    stem_apart: bool = False
    answering: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """What changes the samples, or how they are asked."""
        return {"questions": self.questions, "raw": self.raw, "stem_apart": self.stem_apart}


@dataclass(frozen=True)
class Batch:
    """The documents of one context and seed."""

    context: int
    seed: int
    scripts: tuple[Script, ...]

    @property
    def n_ctx(self) -> int:
        """Positions that an engine needs."""
        return max(one.positions for one in self.scripts)


def check(plan: Plan, grid: Grid) -> None:
    """Refuse settings that cannot be, before anything is loaded. Raises ConfigError."""
    for seed in grid.seeds:
        rows(grid, plan.ways, seed, max(grid.contexts), plan.answering)


def batches(plan: Plan, grid: Grid, make: Make) -> list[Batch]:
    """All documents as tokens. A context is the length of a text; questions and answers come on top of it. Raises
    ConfigError before anything is run."""
    engine = grid.load(make, rows(grid, (), grid.seeds[0], _SMALL)[0].setting, _SMALL)
    try:
        form = form_of(engine, plan.raw)
        n_frame = frame(form)

        def count(text: str) -> int:
            return len(engine.tokenize(text.encode(), add_bos=False, special=False))

        found = []
        for context, seed in pairs(grid.contexts, grid.seeds):
            scripts = []
            for kind in plan.kinds:
                for number in range(plan.documents):
                    document = make_document(kind, count, context - n_frame, plan.questions, number, seed)
                    scripts.append(script(engine, form, document, plan.modes))
            found.append(Batch(context, seed, tuple(scripts)))
        return found
    finally:
        engine.close()


def form_of(engine: Engine, raw: bool) -> Form:
    """The chat format of a model, or plain text. Raises ConfigError for a model without one."""
    from ...engine.answers.chat_templates import RAW

    if raw:
        return Plain(engine)
    if engine.chat_format == RAW:
        raise ConfigError("this model has no chat template (a base model?): add --raw, and it is asked in plain text")
    return Chat(engine)


def run(
    plan: Plan, grid: Grid, found: Sequence[Batch], make: Make, results: ResultFile, progress: Progress
) -> None:
    """Run every document through every row. What is in `results` is not measured again; of a document that was begun
    all questions are asked again, since each depends on those before it.

    Raises what the engine raises; the records so far are in the file.
    """
    every = [(batch, row) for batch in found for row in _rows(plan, grid, batch)]
    progress.total(sum(_n_turns(one) for batch, _ in every for one in batch.scripts))
    model: Record | None = None
    for batch, row in every:
        if model is None:
            model = _model(grid, row, make)
        todo = [one for one in batch.scripts if not _done(plan, batch, row, one, results, model)]
        skipped = sum(_n_turns(one) for one in batch.scripts if one not in todo)
        progress.step(row.setting.title, skipped)
        if todo:
            _run_row(plan, grid, batch, row, todo, make, results, progress, model)


def _rows(plan: Plan, grid: Grid, batch: Batch) -> list[Row]:
    return rows(grid, plan.ways, batch.seed, batch.n_ctx, plan.answering)


def _run_row(
    plan: Plan,
    grid: Grid,
    batch: Batch,
    row: Row,
    scripts: Sequence[Script],
    make: Make,
    results: ResultFile,
    progress: Progress,
    model: Record,
) -> None:
    # Cells for a whole text must still be fewer than the context, else nothing would ever be evicted.
    engine = grid.load(make, row.setting, batch.n_ctx + 2 * CELL_PAD)
    if row.way.reference:
        engine = in_torch(engine, row.setting.evict, row.way.reference)
    try:
        origin = {"device": device(), "versions": versions(), "threads": engine.n_threads, **grid.devices()}
        for one in scripts:
            progress.step(row.setting.title, 0)
            talk = Talk(engine, row.way, one, again=FRESH in plan.modes, stem_apart=plan.stem_apart)
            for mode in plan.modes:
                for turn, measured in talk.ask_all(mode):
                    progress.step(row.setting.title)
                    record = _record(plan, batch, row, one, mode, turn, model)
                    if results.has(record):
                        continue
                    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
                    results.add(
                        record
                        | {"cache": cache_record(engine, turn.positions)}
                        | measured
                        | {"run": {**origin, "backend": engine.report().backend, "date": date}}
                    )
    finally:
        engine.close()


def _record(plan: Plan, batch: Batch, row: Row, one: Script, mode: str, turn: Turn, model: Record) -> Record:
    """A record without what is measured."""
    return {
        "task": f"turns {mode}",
        "options": plan.options,
        "context": batch.context,
        "seed": batch.seed,
        "sample": f"{one.document.id}-{turn.number}",
        "labels": {"kind": turn.question.kind, "turn": turn.number},
        "setting": {**row.setting.record(), "prefill": None if row.setting.full else row.way.text},
        "model": model,
    }


def _done(plan: Plan, batch: Batch, row: Row, one: Script, results: ResultFile, model: Mapping[str, Any]) -> bool:
    return all(
        results.has(_record(plan, batch, row, one, mode, turn, dict(model)))
        for mode, turns in one.turns.items()
        for turn in turns
    )


def _n_turns(one: Script) -> int:
    return sum(map(len, one.turns.values()))


def _model(grid: Grid, row: Row, make: Make) -> Record:
    engine = grid.load(make, row.setting, 1)
    try:
        return model_record(engine)
    finally:
        engine.close()
