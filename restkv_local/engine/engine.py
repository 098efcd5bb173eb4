"""The engine: llama_cpp.Llama with a KV cache of fixed size.

Everything that is built on Llama keeps working: chat formats, grammars, tools, streaming, the server. Overridden is
what assumes that a cache keeps every token (reuse of a prefix, saved states), what cannot be stopped (eval), and what
costs memory without need (the batch, the array of scores).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..config import GUIDE_MAX, check_sampling
from ..errors import Cancelled, ConfigError, ContextOverflow, EvictionError
from ..native.binding import LIBRARY, c
from . import prefill
from .guard import guarded
from .options import by_name, sampling_of
from .report import Turn
from .speaking import Speaking
from .state import EngineState, check_origin, check_tokens, origin, read_blob, write_blob


def _as_list(tokens: Sequence[int]) -> list[int]:
    """A list of tokens, which is not copied when it is one: a long prompt is held once."""
    return tokens if isinstance(tokens, list) else list(tokens)


@guarded
class Engine(Speaking):
    """A model in a KV cache of `evict.budget + reserve` cells, for texts of up to n_ctx positions.

    model_path: a GGUF file; None is the embedded model. n_ctx: limit in positions, rounded up to 256; 0 is what the
    model was trained for. kv_type: "f16", "bf16", "q8_0", "q4_0", or a pair (K, V). on_progress(done, total): tokens of
    a prompt, at 0, after each chunk and at the end. on_evict: after each eviction. on_notice: sentences that a user
    should see, each once. Other keyword arguments are those of llama_cpp.Llama; unknown ones are refused.
    guide: text of the question for prefill="guided"; None: the last user message of a chat, else the prompt's end. What
    the prompt holds after the question belongs to it.

    Calls from several threads queue. `cancel` and `report` may be called at any time from any thread.
    Raises ModelError, ConfigError (before the model is loaded), ContextOverflow, Cancelled and EvictionError.
    """

    # ---- reading -------------------------------------------------------------------------------

    def eval(self, tokens: Sequence[int]) -> None:
        """Read tokens at the next positions: a prompt (more than one) or the next token of an answer.

        Raises ContextOverflow before anything is read, Cancelled and EvictionError with `n_tokens` at what remains.
        """
        with self._call():
            if not self._generating and len(tokens) > 1:
                self._begin_turn(len(tokens), 0)
            before = self._truncate()
            tokens = [*before, *tokens] if before else _as_list(tokens)
            if self.n_tokens + len(tokens) > self._n_ctx:
                raise ContextOverflow(
                    f"Requested tokens ({self.n_tokens + len(tokens)}) exceed context window of {self._n_ctx}; "
                    f"shorten the text or choose a larger n_ctx"
                )
            if not tokens:
                return
            start, first = time.perf_counter(), self.n_tokens
            n_evictions = self._facts_open.n_evictions
            prompt = len(tokens) > 1 or (self._generating and self._turn.completion_tokens == 0)
            try:
                if len(tokens) == 1:
                    prefill.step(self, tokens[0])
                    self._read(1, 1)
                else:
                    prefill.read(self, tokens, prefill.guide_tokens(self.plan, self._guide_of(tokens), tokens))
            except BaseException:
                self._resync()
                raise
            finally:
                seconds = time.perf_counter() - start
                if not prompt:
                    self._turn.decode_seconds += seconds
                else:
                    self._turn.prefill_seconds += seconds
                    self._turn.read_tokens += max(0, self.n_tokens - first)
                    self._turn.prefill_evictions += self._facts_open.n_evictions - n_evictions
                    if self._turn.prefill_evictions:
                        self._turn.prefill_used = self.plan.prefill

    def read_logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Read tokens behind what is there, as an answer is, and return the logits after each: [len(tokens), n_vocab].

        They take 4 bytes x n_vocab per token, here and once more inside llama.cpp: give a long text in pieces.
        Evictions happen where they would if the tokens came one by one, and an exact prefill must be over.
        Raises what eval raises, and EvictionError when cells after n_tokens cannot be removed.
        """
        with self._call():
            if not self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1):
                why = self._facts_open.why_not_cut(self.n_tokens)
                raise EvictionError(f"the text cannot go on at {self.n_tokens}: {why}; start again with reset()")
            if self.n_tokens + len(tokens) > self._n_ctx:
                raise ContextOverflow(
                    f"Requested tokens ({self.n_tokens + len(tokens)}) exceed context window of {self._n_ctx}; "
                    f"shorten the text or choose a larger n_ctx"
                )
            found = np.empty((len(tokens), self._n_vocab), dtype=np.float32)
            cells = self.plan.limit if self.plan.evicts and self.plan.prefill == "exact" else self.plan.capacity
            done = 0
            try:
                while done < len(tokens):
                    if self._cells >= cells and cells < self.plan.capacity:
                        self._evict()
                    free = cells - self._cells
                    size = min(self.n_batch, len(tokens) - done, free if free > 0 else self.n_batch)
                    self._decode(tokens[done : done + size], every_logit=True)
                    for i in range(size):
                        pointer = c.llama_get_logits_ith(self._ctx.ctx, i)
                        found[done + i] = np.ctypeslib.as_array(pointer, shape=(self._n_vocab,))
                    done += size
                    self._read(done, len(tokens))
            except BaseException:
                self._resync()
                raise
            return found

    def _truncate(self) -> list[int]:
        """Remove cells at and after n_tokens. Where that cannot be exact, all go; returns the text before, to be read
        again."""
        if self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1):
            return []
        before: list[int] = self.input_ids[: self.n_tokens].tolist()
        self._turn.reevaluated = self._reason(len(before), len(before))
        self.reset()
        self._announce(self._turn.reevaluated)
        return before

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
    def _cells(self) -> int:
        return self._facts_open.cells

    @property
    def _free(self) -> int:
        return self._facts_open.free

    def _evict(self) -> None:
        native.check(LIBRARY.restkv_evict(self._ctx.ctx, 0))

    def _run_guide(self, guide: Sequence[int]) -> None:
        start, first = time.perf_counter(), self.n_tokens
        seen = self._facts_open.evict_seconds
        try:
            for i in range(0, len(guide), self.n_batch):
                self._decode(guide[i : i + self.n_batch])
            native.check(LIBRARY.restkv_evict(self._ctx.ctx, len(guide)))
        except BaseException:
            self._ctx.kv_cache_seq_rm(-1, first, -1)
            raise
        finally:
            self.n_tokens = first
            self._requires_eval = True  # the logits are the guide's
        self._collect()
        evicting = self._facts_open.evict_seconds - seen
        self._turn.guide_seconds += time.perf_counter() - start - evicting

    def _take_back(self, n: int) -> list[int]:
        first = self.n_tokens - n
        if first <= 0 or not self._ctx.kv_cache_seq_rm(-1, first, -1):
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
            if self.on_evict is not None:
                with self._callback():
                    self.on_evict(eviction)
            if facts.backend_reason:
                self._notice(f"evictions do not run as graphs where the cache lives: {facts.backend_reason}")
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

    def reset(self) -> None:
        """Forget the text; the cells are free at once."""
        with self._call():
            super().reset()
            self._ctx.kv_cache_seq_rm(-1, 0, -1)
            self._restored = None

    # ---- answering -----------------------------------------------------------------------------

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """Llama.generate, with its rules of reuse: a prompt that extends what the cache holds is read from there on.

        A prompt that leaves it earlier is read from that position when nothing after it was evicted, otherwise from
        its start; report().reevaluated and on_notice say so. Raises ConfigError first, for sampling out of bounds.
        """
        check_sampling(sampling_of(args, kwargs))
        inner = self._generate(_as_list(tokens), by_name(args, kwargs))
        return inner if self._queue.nested else self._queue.run(inner, self._uncancel, self._uncancel)

    def _generate(self, tokens: list[int], options: dict[str, Any]) -> Generator[int, Sequence[int] | None, None]:
        self._facts_open  # noqa: B018 (raises when closed)
        reset = options.get("reset", True)
        if not tokens and (reset or (self._requires_eval and self._restored is None)):
            raise ConfigError("the prompt is empty; give at least one token")
        if options.get("grammar") is not None:
            self._check_grammar(options["grammar"])
        if options.get("stopping_criteria") is not None:
            options["stopping_criteria"] = self._as_callback(options["stopping_criteria"])
        self._generating = True
        inner: Generator[int, Sequence[int] | None, None] | None = None
        try:
            reused = self._prepare(tokens) if reset else self.n_tokens
            self._begin_turn(len(tokens), reused)
            inner = super().generate(tokens, **options)
            sent: Sequence[int] | None = None
            while True:
                try:
                    token = inner.send(sent)
                except StopIteration:
                    return
                self._turn.completion_tokens += 1
                sent = yield token
        finally:
            self._generating = False
            if inner is not None:
                inner.close()
            self._sampler = None  # sample() by itself goes by its own arguments

    def _prepare(self, tokens: list[int]) -> int:
        """Cut the cache to what a prompt shares with it, or clear it; returns the tokens that need not be read."""
        shared: int = self.longest_token_prefix(self._input_ids.tolist(), tokens)
        if shared == self.n_tokens and shared == len(tokens) and not self._requires_eval:
            return shared
        keep = shared - 1 if shared == len(tokens) else shared
        if keep == self.n_tokens or keep <= 0:
            return max(keep, 0)
        if self._ctx.kv_cache_seq_rm(-1, keep, -1):
            return keep
        if shared > 1:  # more than the token that starts every text
            self._pending_reason = self._reason(shared, keep)
        self.reset()
        return 0

    def _reason(self, shared: int, cut: int) -> str:
        """Why a text that shares so many positions with the cache is read again, which cannot be cut at `cut`."""
        facts = self._facts_open
        return (
            f"the text agrees with the cache for {shared} of {facts.positions} positions, but "
            f"{facts.why_not_cut(cut)}; it is read again from its start"
        )

    def _begin_turn(self, prompt_tokens: int, reused: int) -> None:
        self._turn = Turn(prompt_tokens=prompt_tokens, reused_tokens=reused)
        reason, self._pending_reason = self._pending_reason, None
        if reason is not None:
            self._turn.reevaluated = reason
            self._announce(reason)

    def _guide_of(self, prompt: list[int]) -> list[int]:
        """The question, and what the chat format puts after it: where an answer begins, its queries ask most.

        That is the end of the prompt from the question on; the question alone when the prompt does not end with it.
        """
        text = self.guide if self.guide is not None else self._asked
        if not text or self.plan.guide == 0:
            return []
        question: list[int] = self.tokenize(text.encode(), add_bos=False, special=False)
        return prefill.tail_from(text.encode(), prompt[-len(question) - GUIDE_MAX :], self._pieces) or question

    def _pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The text of each token, control tokens included."""
        return [self.detokenize([token], special=True) for token in tokens]

    # ---- states --------------------------------------------------------------------------------

    def save_state(self) -> EngineState:
        """A copy of the cache (the cells in use), its tokens and its last logits."""
        with self._call():
            blob = read_blob(self._ctx.ctx)
            return EngineState(
                input_ids=self.input_ids[: self.n_tokens].copy(),
                n_tokens=self.n_tokens,
                llama_state=blob,
                llama_state_size=len(blob),
                seed=self._seed,
                made_by=self._origin(),
                logits=None if self._requires_eval else self._last_logits(),
            )

    def load_state(self, state: Any) -> None:
        """Continue from a saved state. One that does not fit raises ConfigError and leaves the engine empty."""
        with self._call():
            self.reset()
            check_origin(state, self._origin())
            check_tokens(state, self._n_vocab)
            if state.n_tokens > self._n_ctx:
                raise ContextOverflow(
                    f"Requested tokens ({state.n_tokens}) exceed context window of {self._n_ctx}; "
                    f"load the state into an engine with a larger n_ctx"
                )
            try:
                write_blob(self._ctx.ctx, state.llama_state)
                self._facts_open.check_positions(state.n_tokens)
            except BaseException:
                self.reset()
                raise
            self.n_tokens = state.n_tokens
            self.input_ids[: self.n_tokens] = state.input_ids[: self.n_tokens]
            self._seed = state.seed
            self._restored = None if state.logits is None else state.logits.copy()
            self._requires_eval = self._restored is None
            self._facts_open.forget()

    def _origin(self) -> dict[str, Any]:
        return origin(self, self._made_of)
