"""The engine: llama_cpp.Llama with a KV cache of fixed size.

Everything that is built on Llama keeps working: chat formats, grammars, tools, streaming, the server. Overridden is
what assumes that a cache keeps every token (reuse of a prefix, saved states), what cannot be stopped (eval), and what
costs memory without need (the batch, the array of scores).
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import GUIDE_MAX
from ..errors import ConfigError, ContextOverflow, EvictionError
from ..native.binding import LIBRARY, c
from ..paths import typed
from ..sampling import check_sampling
from . import prefill, session
from .archive import recall_report
from .guard import guarded
from .options import by_name, sampling_of
from .report import RecallReport, Turn, shown_question
from .session_header import SavedSession
from .sources import Answer
from .state import EngineState, check_no_archive, check_origin, check_tokens, origin, read_blob, write_blob
from .tracing import Tracing


def _as_list(tokens: Sequence[int]) -> list[int]:
    """A list of tokens, which is not copied when it is one: a long prompt is held once."""
    return tokens if isinstance(tokens, list) else list(tokens)


def _too_long(needed: int, context: int) -> ContextOverflow:
    return ContextOverflow(
        f"Requested tokens ({needed}) exceed context window of {context}; shorten the text or choose a larger n_ctx",
        needed,
        context,
    )


@guarded
class Engine(Tracing):
    """A model in a KV cache of `evict.budget + reserve` cells, for texts of up to n_ctx positions.

    model_path: a GGUF file; None is the embedded model. n_ctx: limit in positions, rounded up to 256; 0 is what the
    model was trained for. kv_type: "f16", "bf16", "q8_0", "q4_0", or a pair (K, V). on_progress(done, total): tokens of
    a prompt, at 0, after each chunk and at the end. on_load(share): of the weights that are loaded, from 0 to 1; what
    it raises stops the load. on_evict: after each eviction. on_notice: sentences that a user should see, each once.
    sources: look, while an answer grows, at what it stands on, so that all of its tokens tell; report() then names the
    passages after every answer. Other keyword arguments are those of llama_cpp.Llama; unknown ones are refused.

    The attribute `guide` is the text of the question for prefill="guided", unless a call has its own; None: the last
    user message of a chat, else the prompt's end. What the prompt holds after the question belongs to it.

    Calls from several threads queue. `cancel` and `report` may be called at any time from any thread.
    Raises ModelError, ConfigError (before the model is loaded), ContextOverflow, Cancelled and EvictionError.
    """

    _contained = False  # a prompt is read whose cells are as they were when it was read before

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
                raise _too_long(self.n_tokens + len(tokens), self._n_ctx)
            if not tokens:
                return
            start, first = time.perf_counter(), self.n_tokens
            n_evictions = self._facts_open.n_evictions
            prompt = len(tokens) > 1 or (self._generating and self._turn.completion_tokens == 0)
            try:
                if len(tokens) == 1 and not (prompt and self.plan.recalls and not self._contained):
                    prefill.step(self, tokens[0], answers=not prompt)
                    self._read(1, 1)
                else:
                    guide = self._guide_of(tokens) if self.plan.guide else []
                    prefill.read(self, tokens, prefill.guide_tokens(self.plan, guide, tokens))
                    if self.plan.recalls and self._facts_open.position_exact > 0:
                        self._turn.question = shown_question(self._question_text())  # it ends what was read last
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
                    self._facts_open.begin_answer()

    def read_logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Read tokens behind what is there, as an answer is, and return the logits after each: [len(tokens), n_vocab].

        They take 4 bytes x n_vocab per token, here and once more inside llama.cpp: give a long text in pieces.
        Evictions and recalls happen where they would if the tokens came one by one, and an exact prefill must be over.
        Raises what eval raises, and EvictionError when cells after n_tokens cannot be removed.
        """
        with self._call():
            self._cut_here()
            if self.n_tokens + len(tokens) > self._n_ctx:
                raise _too_long(self.n_tokens + len(tokens), self._n_ctx)
            found = np.empty((len(tokens), self._n_vocab), dtype=np.float32)
            cells = self.plan.limit if self.plan.evicts and self.plan.prefill == "exact" else self.plan.capacity
            done = 0
            try:
                while done < len(tokens):
                    if self._cells >= cells and cells < self.plan.capacity:
                        self._evict()
                    free, plain = cells - self._cells, self._plain
                    size = min(self.n_batch, len(tokens) - done, free if free > 0 else self.n_batch, plain or 1)
                    if plain:
                        self._decode(tokens[done : done + size], every_logit=True)
                    else:
                        self._read_answer(tokens[done], every_logit=True)
                    for i in range(size):
                        pointer = c.llama_get_logits_ith(self._ctx.ctx, i)
                        found[done + i] = np.ctypeslib.as_array(pointer, shape=(self._n_vocab,))
                    done += size
                    self._read(done, len(tokens))
            except BaseException:
                self._resync()
                raise
            return found

    def recall(self, question: str | Sequence[int] | None = None) -> RecallReport:
        """Choose the cells of every layer again, among all that was read, for what is going to be asked.

        question: text or tokens that are run behind what was read, choose by their queries, and are dropped again; of a
        long one the last plan.archive.guide tokens. None: the queries of the last `window` tokens choose.
        Raises ConfigError without an archive, ArchiveError where rows cannot be written or read, and what eval raises.
        """
        with self._call():
            start, before = time.perf_counter(), self._facts_open.archive
            if before is None:
                raise ConfigError("this engine has no archive to recall from; make it with EvictConfig(archive='ram')")
            guide = [] if question is None else self._as_guide(question)
            self._cut_here()
            try:
                if self._facts_open.position_exact > 0:  # else nothing has been evicted
                    if len(guide) > self._free:
                        self._evict()
                    self._with_guide(guide, LIBRARY.restkv_recall)
                    text = question if isinstance(question, str) else self.prompt_text(guide)
                    self._turn.question = shown_question(text)
            except BaseException:
                self._resync()
                raise
            finally:
                self._collect()
                self._facts_open.begin_answer()
            after = self._facts_open.archive or before
            return recall_report(before, after, self.plan, time.perf_counter() - start)

    def _as_guide(self, question: str | Sequence[int]) -> list[int]:
        """The tokens of a question that can be run behind the text; the last ones, where it is long."""
        archive = self.plan.archive
        given = _as_list(question) if not isinstance(question, str) else self.tokenize(question.encode(), add_bos=False)
        if not given:
            raise ConfigError("the question is empty; leave it out to recall by the end of the text")
        if archive is None or archive.guide == 0:
            raise ConfigError("the recurrent layers of this model cannot forget a question; use recall() without one")
        return given[-max(1, min(archive.guide, self._n_ctx - self.n_tokens)) :]

    def _cut_here(self) -> None:
        """Remove cells at and after n_tokens. Raises EvictionError where that cannot be exact."""
        if not self._cut(self.n_tokens):
            why = self._facts_open.why_not_cut(self.n_tokens)
            raise EvictionError(f"the text cannot go on at {self.n_tokens}: {why}; start again with reset()")

    def _truncate(self) -> list[int]:
        """Remove cells at and after n_tokens. Where that cannot be exact, all go; returns the text before, to be read
        again."""
        if self._cut(self.n_tokens):
            return []
        before: list[int] = self.input_ids[: self.n_tokens].tolist()
        self._turn.reevaluated = self._reason(len(before), len(before))
        self.reset()
        self._announce(self._turn.reevaluated)
        return before

    def reset(self) -> None:
        """Forget the text; the cells are free at once."""
        with self._call():
            super().reset()
            self._ctx.kv_cache_seq_rm(-1, 0, -1)
            self._restored = self._turn.question = None
            if not self._generating:
                self._answer = None

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
            start = len(tokens) + (0 if reset else self.n_tokens)
            self._answer = Answer(start, self._question_text())
            inner = super().generate(tokens, **options)
            sent: Sequence[int] | None = None
            while True:
                try:
                    token = inner.send(sent)
                except StopIteration:
                    return
                self._turn.completion_tokens += 1
                self._follow()
                sent = yield token
        finally:
            self._generating = self._contained = False
            if inner is not None:
                inner.close()
            self._sampler = None  # sample() by itself goes by its own arguments

    def _prepare(self, tokens: list[int]) -> int:
        """Cut the cache to what a prompt shares with it, or clear it; returns the tokens that need not be read."""
        shared: int = self.longest_token_prefix(self._input_ids.tolist(), tokens)
        self._contained = False
        if shared == self.n_tokens and shared == len(tokens) and not self._requires_eval:
            return shared
        keep = shared - 1 if shared == len(tokens) else shared
        if keep < shared and self.plan.recalls:
            keep = self._again_from(tokens)
        if keep == self.n_tokens or keep <= 0:
            return max(keep, 0)
        if self._cut(keep):
            self.n_tokens = keep  # Llama.generate looks for itself how much the cache shares with the prompt
            self._requires_eval = True
            return keep
        if shared > 1:  # more than the token that starts every text
            self._pending_reason = self._reason(shared, keep)
        self.reset()
        return 0

    def _again_from(self, tokens: list[int]) -> int:
        """Where a prompt that the cache holds whole is read again, so that there are logits.

        At its last token, with the cells as they were for it, where nothing has been evicted since, nor recalled by its
        answer; else at its question, whose queries then choose the cells again.
        """
        last, exact = len(tokens) - 1, self._facts_open.position_exact
        self._contained = exact == 0 or (exact <= last and not self.evict.recalls_in_answers)
        guide = [] if self._contained else (self._guide_of(tokens) or tokens[-self.plan.window :])[-GUIDE_MAX:]
        return last if self._contained else min(last, max(1, len(tokens) - len(guide)))

    def _reason(self, shared: int, cut: int) -> str:
        """Why a text that shares so many positions with the cache is read again, which cannot be cut at `cut`."""
        facts = self._facts_open
        return (
            f"the text agrees with the cache for {shared} of {facts.positions} positions, but "
            f"{facts.why_not_cut(cut)}; it is read again from its start"
        )

    def _begin_turn(self, prompt_tokens: int, reused: int) -> None:
        self._turn = Turn(prompt_tokens=prompt_tokens, reused_tokens=reused, question=self._turn.question)
        self._answer = None
        self._facts_open.begin_turn()
        reason, self._pending_reason = self._pending_reason, None
        if reason is not None:
            self._turn.reevaluated = reason
            self._announce(reason)

    def _guide_of(self, prompt: list[int]) -> list[int]:
        """The question, and what the chat format puts after it: where an answer begins, its queries ask most.

        That is the end of the prompt from the question on; the question alone when the prompt does not end with it.
        """
        text = self._question_text()
        if not text:
            return []
        return self._tail_of(prompt, text) or self.tokenize(text.encode(), add_bos=False, special=False)

    # ---- states --------------------------------------------------------------------------------

    def save_state(self) -> EngineState:
        """A copy of the cache (the cells in use), its tokens and its last logits."""
        with self._call():
            check_no_archive(self.plan)
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

    def set_cache(self, cache: Any) -> None:
        """Llama.set_cache: states of what was read go there, and come back. Raises ConfigError with an archive."""
        if cache is not None:
            check_no_archive(self.plan)
        super().set_cache(cache)

    def load_state(self, state: Any) -> None:
        """Continue from a saved state. One that does not fit raises ConfigError and leaves the engine empty."""
        with self._call():
            check_no_archive(self.plan)
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

    def save_session(
        self, path: str | os.PathLike[str], *, messages: Sequence[Any] = (), notes: dict[str, Any] | None = None
    ) -> SavedSession:
        """Write what was read to a file, with the rows of the archive; `load_session` goes on from there.

        The file is made beside an old one and takes its place when it is whole; only its owner may read it. Rows are
        copied in blocks. messages, notes: plain JSON values that come back. Raises SessionError for a file that cannot
        be written, ArchiveError for rows that cannot be read, and Cancelled; an old file stays then.
        """
        with self._call():
            return session.save(self, typed(path), messages, notes or {})

    def load_session(self, path: str | os.PathLike[str]) -> SavedSession:
        """Go on from a session that an engine of the same model saved.

        Raises SessionError for a file that is damaged, cut short, foreign, of a newer version, of another model or of
        settings that do not fit, and Cancelled; the text that was there before stays. Only when the rows of its archive
        cannot be written any more is the engine empty.
        """
        with self._call():
            return session.load(self, typed(path))

    def _origin(self) -> dict[str, Any]:
        return origin(self, self._made_of)
