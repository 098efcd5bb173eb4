"""An engine that can say where its last answer came from."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ..config import GUIDE_MAX, SOURCES, whole_in_range
from ..errors import ConfigError, RestkvError
from . import prefill
from .decoding import Decoding
from .report import Report, Source
from .sources import Answer, check_queries, passages, text_of


class Tracing(Decoding):
    """Decoding, and where the last answer came from."""

    _answer: Answer | None = None

    def sources(self, n: int = SOURCES) -> tuple[Source, ...]:
        """At most n passages of the prompt that the last answer stands on, by weight; report() has them afterwards.

        Of the prompt that is `guide`, or else the last user message of a chat where it is less than half of the prompt,
        is left out: every answer looks at its question. So is what is in no cell any more. The queries of the answer's
        last tokens tell, as many as are remembered (report().sources_tokens); with Engine(sources=True) those of all.
        Takes as long as an eviction, and 4 bytes per position of the prompt.
        Raises ConfigError when there is no answer or this method keeps no queries, ModelError where the model's
        attention leaves none.
        """
        whole_in_range("n", n, 1, 2**31 - 1)
        with self._call():
            return self._tell(n)

    def report(self) -> Report:
        """What was evicted, where, how long it took, and the figures of the last turn; while another thread reads,
        as of its last chunk."""
        with self._queue.pause() as idle:
            self._facts_open  # noqa: B018 (raises when closed)
            if idle and self._follows and not self._generating and not self._turn.sources_tokens:
                with contextlib.suppress(RestkvError):  # the report has the reason
                    self._tell(SOURCES)
            return super().report()

    def _tell(self, n: int) -> tuple[Source, ...]:
        """The sources, for the report too."""
        turn = self._turn
        try:
            turn.sources = self._trace(n)
        except RestkvError as error:
            turn.sources, turn.sources_reason = (), str(error)
            raise
        turn.sources_tokens = self._answer.tokens if self._answer is not None else 0
        turn.sources_reason = None if turn.sources else "the answer looked at no passage in particular"
        return turn.sources

    def _trace(self, n: int) -> tuple[Source, ...]:
        answer = self._answer
        check_queries(self.evict)
        if answer is None or self._turn.completion_tokens == 0 or self.n_tokens < answer.start:
            raise ConfigError("there is no answer in the cache whose sources could be told; ask something first")
        answer.look(self._ctx.ctx, self.n_tokens)
        assert answer.weights is not None
        prompt: list[int] = self.input_ids[: answer.start].tolist()
        text, ends = text_of(prompt, lambda token: self.detokenize([token]))
        if text[:1] == " " and prompt[0] == self.token_bos():  # as prompt_text leaves it out
            text, ends = text[1:], (ends - 1).clip(0)
        return passages(answer.weights[: self._question_at(prompt, answer.question)], text, ends, n)

    def _follow(self) -> None:
        """While an answer grows: look before the ring forgets the queries of its first tokens."""
        answer, ring = self._answer, self.evict.ring_rows(self.plan.budget, self.plan.capacity)
        if self._follows and answer is not None and self.n_tokens - answer.seen >= ring:
            answer.look(self._ctx.ctx, self.n_tokens)

    def _tail_of(self, prompt: Sequence[int], question: str) -> list[int]:
        """The end of a prompt from a question on; nothing when the prompt does not end with it."""
        words = self.tokenize(question.encode(), add_bos=False, special=False)
        return prefill.tail_from(question.encode(), prompt[-len(words) - GUIDE_MAX :], self._pieces)

    def _question_at(self, prompt: Sequence[int], question: str | None) -> int:
        """Where the question begins, that is no source; the end of the prompt where that is not known."""
        n = len(self._tail_of(prompt, question)) if question else 0
        return len(prompt) - (n if 2 * n < len(prompt) or question == self.guide else 0)

    def _pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The text of each token, control tokens included."""
        return [self.detokenize([token], special=True) for token in tokens]
