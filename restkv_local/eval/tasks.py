"""Tasks as cases: rendered, read, answered greedily and scored, with the log-probability of the reference beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from .grid import Grid, Setting, pairs
from .prompt import chat_tokens, render
from .reading import answer_log_prob, greedy
from .results import Record
from .run import Batch, Case
from .sample import Sample, Task

Engine = Any
# Positions of the engine that only tokenizes.
_SMALL = 256


def batches(
    tasks: Sequence[Task], grid: Grid, make: Callable[..., Engine], options: Mapping[str, Any], samples: int
) -> list[Batch]:
    """The cases of all contexts and seeds. options: what the user chose for these tasks; samples: of each cell of a
    task's own grid (`task.cells` of them, where it has that, else one). Raises ConfigError before anything is run."""
    engine = grid.load(make, grid.settings(grid.seeds[0])[0], _SMALL)
    try:
        frame = len(chat_tokens(engine, ""))

        def count(text: str) -> int:
            return len(engine.tokenize(text.encode(), add_bos=False, special=False))

        found = []
        for context, seed in pairs(grid.contexts, grid.seeds):
            cases: list[Case] = []
            for task in tasks:
                n = samples * int(getattr(task, "cells", 1))
                drawn = task.samples(count, context - frame, n, seed)
                if not drawn:
                    raise ConfigError(f"{task.name} has no sample of {context} tokens; choose other --contexts")
                cases += [_case(engine, task, sample, options) for sample in drawn]
            found.append(Batch(context, seed, cases))
        return found
    finally:
        engine.close()


def _case(engine: Engine, task: Task, sample: Sample, options: Mapping[str, Any]) -> Case:
    prompt = render(engine, sample)

    def measure(engine: Engine, setting: Setting) -> Record:
        state = engine.save_state() if len(prompt.answer) else None
        log_prob = None
        if state is not None:
            log_prob = answer_log_prob(engine, prompt.answer.tolist())
            engine.load_state(state)
        tokens = greedy(engine, sample.max_tokens)
        answer = engine.detokenize(tokens).decode("utf-8", "replace")
        scores = {"score": task.score(sample, answer), "log_prob": log_prob, "answer_tokens": len(tokens)}
        return {"scores": scores, "answer": answer, "references": list(sample.references)}

    return Case(
        task=task.name,
        options=options,
        sample=sample.id,
        labels=sample.labels,
        prompt=prompt.prompt,
        guide=sample.question.strip() or None,
        positions=prompt.positions,
        measure=measure,
    )
