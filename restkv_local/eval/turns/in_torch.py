"""Rows of which the engine has no setting, on the reference engine: their recalls choose something else."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config import EvictConfig
from ...errors import ConfigError
from .rows import EVERYTHING

if TYPE_CHECKING:
    from ...reference.model import ReferenceEngine

Engine = Any


def in_torch(engine: Engine, evict: EvictConfig, chooses: str) -> InTorch:
    """A reference engine in the place of an engine, which is closed: the same model, settings and chunks. chooses: what
    its recalls do (rows.EVERYTHING, rows.PAGES). Raises ModelError for a model that the reference cannot run."""
    try:
        return InTorch(engine, evict, chooses)
    finally:
        engine.close()


class InTorch:
    """What a Talk needs of an engine. Texts are read with recall, and so are questions, by `ask`. n_tokens: that were
    read; setting it forgets those behind. scores: logits behind the last one, by its position."""

    def __init__(self, engine: Engine, evict: EvictConfig, chooses: str) -> None:
        import torch

        from ...reference.forward import Transformer

        self.plan, self.metadata, self.guide = engine.plan, engine.metadata, None
        self.n_threads, self.n_batch = int(engine.n_threads), int(engine.n_batch)
        self._chunk, self._said = engine._chunk, engine.report()
        self._evict, self._chooses = evict, chooses
        torch.set_num_threads(self.n_threads)
        self._model = Transformer(self.plan.model, n_ctx=self.plan.context)
        self.scores: dict[int, np.ndarray[Any, np.dtype[np.float32]]] = {}
        self._decode_seconds = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget everything, the sizes of pages too."""
        plan = self.plan
        type_k, type_v = plan.kv_types
        self._engine = _engine(self._chooses)(
            self._model, plan.budget, plan.capacity, self._evict, type_k=type_k, type_v=type_v, archive=True
        )

    def close(self) -> None:
        """Nothing is held that is not freed by itself."""

    @property
    def n_tokens(self) -> int:
        return self._engine.n_tokens

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        self._engine.cut(n)

    @property
    def cells(self) -> int:
        """In use, per layer and KV head."""
        return self._engine.cells

    def kept(self, layer: int, head: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Positions in the cells of a KV head. Raises ConfigError for a layer that does not evict, or no head."""
        spec = self._engine.model.spec
        if spec.swa[layer] or head >= spec.n_head_kv[layer]:
            raise ConfigError(f"layer {layer} has no KV head {head} that evicts; choose another")
        return self._engine.kept(layer, head)

    def eval(self, tokens: Sequence[int]) -> None:
        """Read a text, in chunks with recall, or the next token of an answer."""
        start = time.perf_counter()
        recalls = len(tokens) > 1
        self._read(tokens, recalls)
        if not recalls:
            self._decode_seconds += time.perf_counter() - start

    def ask(self, tokens: Sequence[int]) -> None:
        """Read a question, or the part of it that was not read yet."""
        from ...reference.everything import WholeEngine

        if isinstance(self._engine, WholeEngine):
            self._engine.attend_to_everything()
        self._read(tokens, True)

    def read_logits(self, tokens: Sequence[int]) -> None:
        """Where a Talk makes a cut of `n_tokens` happen; here it has."""

    def report(self) -> Any:
        """As of an engine; times are those of torch."""
        return dataclasses.replace(
            self._said, backend="reference", cells=self.cells, positions=self.n_tokens,
            n_evictions=self._engine.n_evictions, decode_seconds=self._decode_seconds,
        )  # fmt: skip

    def _read(self, tokens: Sequence[int], recalls: bool) -> None:
        for first in range(0, len(tokens), self._chunk):
            chunk = [int(token) for token in tokens[first : first + self._chunk]]
            logits = self._engine.decode(chunk, recall=recalls)
        self.scores = {self.n_tokens - 1: logits[-1]}


def _engine(chooses: str) -> type[ReferenceEngine]:
    from ...reference.everything import WholeEngine
    from ...reference.pages import PagedEngine

    return WholeEngine if chooses == EVERYTHING else PagedEngine
