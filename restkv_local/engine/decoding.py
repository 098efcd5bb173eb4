"""How tokens get into the cache: chunks, guides and evictions, and what is left after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from .. import native
from ..errors import Cancelled, EvictionError
from ..native.binding import LIBRARY, c
from .report import shown_question
from .speaking import Speaking


class Decoding(Speaking):
    """Speaking, and what prefill.py asks of an engine."""

    def _decode(self, tokens: Sequence[int], every_logit: bool = False) -> None:
        first, n = self.n_tokens, len(tokens)
        if self._stop.value:
            raise Cancelled("stopped by cancel()")
        self._batch.set_batch(batch=tokens, n_past=first, logits_all=every_logit)
        self._restored = None
        self._requires_eval = True
        self.input_ids[first : first + n] = tokens
        native.forget_failure()
        status = c.llama_decode(self._ctx.ctx, self._batch.batch)
        if status == 2:
            raise Cancelled("stopped by cancel()")
        if status == 1:
            failed = native.failure()
            if failed is None:
                raise EvictionError(
                    f"{n} tokens do not fit the {self._free} cells that are free: decode smaller batches"
                )
            raise native.error_type(failed.status)(
                f"no cell is free for {n} tokens, and the eviction failed: {failed.reason}"
            )
        if status != 0:
            raise EvictionError(f"llama.cpp failed to decode {n} tokens at position {first} (status {status})")
        self.n_tokens = first + n
        self._requires_eval = False

    @property
    def _chunk(self) -> int:
        """Most tokens that are read with recall at once: they are one ubatch, so each layer sees them together."""
        return min(int(c.llama_n_ubatch(self._ctx.ctx)), self.plan.reserve)

    @property
    def _cells(self) -> int:
        return self._facts_open.cells

    @property
    def _free(self) -> int:
        return self._facts_open.free

    def _evict(self) -> None:
        native.check(LIBRARY.restkv_evict(self._ctx.ctx, 0))

    def _cut(self, position: int) -> bool:
        """Remove the cells at and after a position; False when that cannot be exact, and nothing has changed."""
        native.forget_failure()
        return bool(self._ctx.kv_cache_seq_rm(-1, position, -1))

    @property
    def _plain(self) -> int:
        """Tokens of an answer that come before the next one that recalls, or may."""
        every = self.evict.recall_every
        if self.evict.recall_below > 0:
            return 0
        return -(self.n_tokens + 1) % every if every else self.plan.context

    def _read_answer(self, token: int, every_logit: bool = False) -> None:
        """Decode a token of an answer that recalls: in every layer, or in those that ask for something new."""
        every = self.evict.recall_every
        whole = every > 0 and (self.n_tokens + 1) % every == 0
        self._read_chunk([token], every_logit, 0.0 if whole else self.evict.recall_below)

    def _read_chunk(self, tokens: Sequence[int], every_logit: bool = False, below: float = 0.0) -> None:
        """Decode a chunk whose queries choose the cells, in every layer before it attends. A failure takes it back.

        below: a bound on the likeness of queries, see EvictConfig.recall_below; 0: all layers recall.
        """
        first = self.n_tokens
        native.check(LIBRARY.restkv_set_reading(self._ctx.ctx, True, below))
        try:
            if len(tokens) > self._free:
                self._evict()  # only drops cells: they are in the archive
            self._decode(tokens, every_logit)
        finally:
            # whatever happened: what is read next may not recall
            status = LIBRARY.restkv_set_reading(self._ctx.ctx, False, 0.0)
        try:
            native.check(status)
        except BaseException:
            if self._cut(first):
                self.n_tokens = first
                self._requires_eval = True  # the logits are of a chunk that is gone
            else:
                self.reset()
            raise

    def _question_text(self) -> str | None:
        """The question: that of the call, else the engine's, else the last user message. None: there is none."""
        return next((text for text in (self._guide_now, self.guide, self._asked) if text is not None), None) or None

    def _run_guide(self, guide: Sequence[int]) -> None:
        start, seen = time.perf_counter(), self._facts_open.evict_seconds
        self._with_guide(guide, LIBRARY.restkv_evict)
        self._collect()
        evicting = self._facts_open.evict_seconds - seen
        self._turn.guide_seconds += time.perf_counter() - start - evicting

    def _with_guide(self, guide: Sequence[int], choose: Callable[[Any, int], int]) -> None:
        """Decode a guide, let its queries choose the cells, and take it back."""
        first = self.n_tokens
        try:
            for i in range(0, len(guide), self.n_batch):
                self._decode(guide[i : i + self.n_batch])
            native.check(choose(self._ctx.ctx, len(guide)))
        except BaseException:
            self._cut(first)
            raise
        finally:
            self.n_tokens = first
            self._requires_eval = self._requires_eval or bool(guide)  # the logits are the guide's

    def _take_back(self, n: int) -> list[int]:
        first = self.n_tokens - n
        if first <= 0 or not self._cut(first):
            return []
        taken: list[int] = self.input_ids[first : self.n_tokens].tolist()
        self.n_tokens = first
        self._requires_eval = True  # the logits are those of a token that is gone
        return taken

    def _read(self, done: int, total: int) -> None:
        self._collect()
        if self.n_tokens > self.plan.n_ctx_train > 0:
            self._notice(self.plan.beyond_training)
        if total > 1 and self.on_progress is not None:
            with self._callback():
                self.on_progress(done, total)
        if done < total and self._stop.value:
            raise Cancelled("stopped by cancel()")

    def _collect(self) -> None:
        facts = self._facts_open
        before = facts.evict_seconds
        for eviction in facts.collect():
            self._turn.guided_evictions += eviction.guide > 0
            if not self.plan.recalls:
                self._turn.question = shown_question(self._question_text()) if eviction.guide else None
            if self.on_evict is not None:
                with self._callback():
                    self.on_evict(eviction)
            if facts.backend_reason:
                self._notice(f"evictions do not run as graphs where the cache lives: {facts.backend_reason}")
            if facts.recall_reason:
                self._notice(f"recalls do not attend as graphs where the cache lives: {facts.recall_reason}")
        self._turn.evict_seconds += facts.evict_seconds - before

    def _resync(self) -> None:
        """After a stop or a failure: n_tokens is what the cache really holds."""
        if self._is_recurrent or self._is_hybrid:
            # A recurrent state cannot go back to before the batch that was stopped.
            self.reset()
            return
        self.n_tokens = self._facts_open.positions  # whole ubatches of a stopped chunk stay; 0 when the cache was lost
        if self.n_tokens == 0:
            self._restored = None
            self._requires_eval = True  # there are no logits either
