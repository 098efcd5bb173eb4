"""A process whose evictions fail on purpose: what is left of the cache, one line of JSON per failure.

    python fault_peer.py FOLDER MODEL CASES

FOLDER: of the library. CASES: JSON, a list of (options of EvictConfig, steps).

A step is STEP:N:KIND, as native/fault.h has it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

N_MORE = 54  # tokens of the chunk that needs the eviction
N_AFTER = 150  # tokens behind it, with evictions of their own


class Run:
    """One engine on a text, and what it must come to: as it went on without a failure."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        from restkv_local import Engine, EvictConfig

        config = EvictConfig(**{"budget": 96, "reserve": 64, **options})
        self.engine = Engine(model, 1024, config, n_threads=1, n_batch=128)
        self.engine.guide = "which one?" if config.prefill == "guided" else None
        # exact: the eviction comes at the end of the text; else when the free cells are used up
        self.exact = config.prefill == "exact"
        self.first = 100 if self.exact else self.engine._free - 6
        n = self.first + 6 + N_MORE
        self.tokens = [10 + i * i * 7 % 290 for i in range(n + N_AFTER)]
        self.n = n
        self.expected = self.through()
        assert self.engine.report().n_evictions >= 2

    def through(self, start: int = 0) -> tuple[list[Any], ...]:
        """Read on from `start`, in the same pieces as ever; the logits and what is kept."""
        engine = self.engine
        found = []
        if start == 0:
            engine.eval(self.tokens[: self.first])
        engine.eval(self.tokens[engine.n_tokens : self.n])
        found.append(engine.scores[-1].tolist())
        engine.eval(self.tokens[self.n :])
        found.append(engine.scores[-1].tolist())
        return *found, [self.kept(layer) for layer in range(4)]

    def kept(self, layer: int) -> list[list[int]] | None:
        """Positions of a layer's heads; of one that does not evict none."""
        from restkv_local.errors import ConfigError

        try:
            return [self.engine.kept(layer, head).tolist() for head in range(2)]
        except ConfigError:
            return None

    def fail(self, step: str, run: int, early: bool) -> dict[str, Any]:
        """What is left after a failure. early: it is asked for before the first piece is read."""
        from restkv_local.errors import EvictionError
        from restkv_local.native.binding import c

        engine = self.engine
        engine.reset()
        if early:
            os.environ["RESTKV_FAIL_AT"] = f"{step}:{run}"
        engine.eval(self.tokens[: self.first])
        os.environ["RESTKV_FAIL_AT"] = f"{step}:{run}"
        raised = None
        try:
            engine.eval(self.tokens[self.first : self.n])
        except EvictionError as error:
            raised = str(error)
        del os.environ["RESTKV_FAIL_AT"]
        left = engine.n_tokens
        found: dict[str, Any] = {"step": step, "raised": raised, "n_tokens": left}
        found["positions"], found["cells"] = engine.report().positions, engine.cells
        found["logits"] = bool(np.any(engine.scores))
        if raised is not None and left == 0:
            # whoever goes on all the same, at the old position or where the cache says, is told so
            found["status"] = []
            for position in (self.first + 6, 0):
                engine._batch.set_batch(batch=self.tokens[:4], n_past=position, logits_all=False)
                found["status"].append(c.llama_decode(engine._ctx.ctx, engine._batch.batch))
        found["same"] = self.through(left) == self.expected
        return found


    def fail_recall(self, step: str, run: int) -> dict[str, Any]:
        """What is left after a recall that failed, and whether the next one comes to the same."""
        from restkv_local.errors import EvictionError

        engine, question = self.engine, self.tokens[7:17]

        def recalled() -> list[Any]:
            engine.recall(question)
            return [self.kept(layer) for layer in range(4)]

        engine.reset()
        engine.eval(self.tokens[: self.n])
        expected = recalled()
        engine.reset()
        engine.eval(self.tokens[: self.n])
        os.environ["RESTKV_FAIL_AT"] = f"{step}:{run}"
        raised = None
        try:
            engine.recall(question)
        except EvictionError as error:
            raised = str(error)
        del os.environ["RESTKV_FAIL_AT"]
        found: dict[str, Any] = {"step": step, "raised": raised, "n_tokens": engine.n_tokens, "logits": False}
        found["positions"], found["cells"] = engine.report().positions, engine.cells
        if engine.n_tokens == 0:
            found["status"] = [1, 1]
            engine.reset()
            engine.eval(self.tokens[: self.n])
        found["same"] = recalled() == expected
        return found


def main(folder: str, model: str, cases: str) -> None:
    """Each step of each case."""
    os.environ["RESTKV_LIB_PATH"] = folder
    for i, (options, steps) in enumerate(json.loads(cases)):
        run = Run(model, options)
        for j, step in enumerate(steps):
            early = step.endswith(":early")
            if step.endswith(":ask"):
                found = run.fail_recall(step.removesuffix(":ask"), 1000 * i + j)
            else:
                found = run.fail(step.removesuffix(":early"), 1000 * i + j, early)
            print(json.dumps({"case": options, **found, "step": step}), flush=True)
        run.engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
