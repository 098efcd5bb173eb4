"""What an engine says: completions and chats, with what llama_cpp lets pass checked before anything is read."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
from llama_cpp.llama_tokenizer import LlamaTokenizer

from ..errors import ConfigError, RestkvError
from ..native.binding import c
from ..sampling import check_sampling
from .answers import chat_templates, seeds
from .answers.completion import Request, complete, limit_of, stops_of
from .answers.grammar import check_grammar, check_schemas
from .answers.logprobs import Scored, best, log_softmax
from .answers.processors import Processors, as_list, bias
from .answers.prompt_tokens import prompt_tokens
from .answers.text import ForeignPieces
from .core import Core
from .options import check_guide, last_question

# The last user message of the chat completion that is being started in this context.
_question: ContextVar[str | None] = ContextVar("restkv_question", default=None)
# The guide that was given to the call that is being started in this context.
_guide: ContextVar[str | None] = ContextVar("restkv_guide", default=None)

_TOKEN_DATA = np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)


class Speaking(Core):
    """Core, and how it answers."""

    _grammar_checked: str | None = None
    _processors: Processors | None = None
    _may_leave_none = False  # whether every token may be ruled out

    # ---- tokens --------------------------------------------------------------------------------

    @property
    def _own_tokenizer(self) -> bool:
        return type(self.tokenizer_) is LlamaTokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Tokens of a text (UTF-8), by the tokenizer that the engine was made with, or the model's own."""
        if not self._own_tokenizer:
            return list(self.tokenizer_.tokenize(text, add_bos, special))
        return list(self._model.tokenize(text, add_bos=add_bos, special=special))

    def is_end(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(c.llama_vocab_is_eog(self._model.vocab, token))

    def prompt_text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, control tokens left out."""
        return str(self.detokenize(list(tokens)).decode("utf-8", "ignore"))

    def pieces(self, prompt: list[int]) -> Callable[[int], bytes]:
        """A function that gives the bytes of one token after the other of an answer to a prompt."""
        if not self._own_tokenizer:
            return ForeignPieces(lambda tokens: self.detokenize(tokens, prev_tokens=prompt))
        begin = self._model.token_bos()
        first = prompt == [begin]  # a tokenizer may have put a space before the first word

        def piece(token: int) -> bytes:
            nonlocal first
            text = bytes(self._model.token_to_piece(token))
            if first and text:
                first, text = False, text.removeprefix(b" ")
            return text

        return piece

    def scored(self, token: int, top: int) -> Scored:
        """Text and log-probability of the token that was drawn last, and the `top` best by their text."""
        row = log_softmax(self._last_logits())
        found: dict[str, float] = {}
        for other in best(row, top):
            found.setdefault(self.prompt_text([other]), float(row[other]))
        text = self.prompt_text([token])
        return text, float(row[token]), {**found, text: float(row[token])}

    # ---- completions ---------------------------------------------------------------------------

    def _create_completion(
        self,
        prompt: str | list[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        seed: int | None = None,
        model: str | None = None,
        logits_processor: Any = None,
        logit_bias: dict[Any, float] | None = None,
        grammar: Any = None,
        **sampling: Any,
    ) -> Generator[Any, None, None]:
        self._facts_open  # noqa: B018 (raises when closed)
        if logprobs is not None and echo:
            raise ConfigError("echo with logprobs needs the logits of every prompt token, which are not kept; drop one")
        check_sampling({**sampling, "temperature": temperature})
        processors = as_list(logits_processor)
        if logit_bias:
            processors.append(bias(logit_bias, self._n_vocab))
        if grammar is not None:
            self._check_grammar(grammar)
        tokens = prompt_tokens(self, prompt, suffix)
        request = Request(
            prompt=prompt,
            tokens=tokens,
            limit=limit_of(len(tokens), max_tokens, self._n_ctx),
            stops=stops_of(stop),
            echo=echo,
            logprobs=logprobs,
            model=model,
            sampling={**sampling, "temp": temperature, "grammar": grammar, "logits_processor": processors or None},
        )
        chosen = None if seed is None else seeds.fixed(seed)
        question, guide, before = _question.get(), _guide.get(), seeds.RANDOM

        def start() -> None:
            nonlocal before
            self._uncancel()
            self._asked, self._guide_now, before = question, guide, self._seed
            self._seed = seeds.following(self._seed) if chosen is None else chosen
            self._use_cached_state(tokens)

        def end() -> None:
            self._uncancel()
            self._asked = self._guide_now = None
            if before == seeds.RANDOM:  # a seed of one call is not the engine's
                self._seed = before

        def run() -> Generator[Any, None, None]:
            self._facts_open  # noqa: B018 (raises when closed)
            start()
            try:
                yield from complete(self, request, stream)
            finally:
                end()

        return self._queue.run(run(), self._uncancel, self._uncancel)

    def _use_cached_state(self, tokens: list[int]) -> None:
        """Continue from a state in `cache` (set_cache) that has more of a prompt than the engine has."""
        if not self.cache:
            return
        try:
            state = self.cache[tokens]
        except KeyError:
            return
        if self.longest_token_prefix(state.input_ids.tolist(), tokens) > self.longest_token_prefix(
            self._input_ids.tolist(), tokens
        ):
            self.load_state(state)

    def create_completion(self, prompt: Any, *args: Any, guide: str | None = None, **kwargs: Any) -> Any:
        """Llama.create_completion. guide: text of the question, for this call alone; see Engine."""
        token = _guide.set(check_guide(guide) if guide is not None else _guide.get())
        try:
            return super().create_completion(prompt, *args, **kwargs)
        finally:
            _guide.reset(token)

    def create_chat_completion(self, messages: list[Any], *args: Any, guide: str | None = None, **kwargs: Any) -> Any:
        """Llama.create_chat_completion. guide: text of the question, for this call alone; None: the engine's `guide`,
        else the last user message."""
        self._facts_open  # noqa: B018 (raises when closed)
        chat_templates.handler(self)
        check_schemas(kwargs, self._model)
        if self.chat_handler is None:
            messages = chat_templates.plain(messages)
        token, own = _question.set(last_question(messages)), _guide.set(check_guide(guide))
        try:
            return super().create_chat_completion(messages, *args, **kwargs)
        finally:
            _question.reset(token)
            _guide.reset(own)

    def set_seed(self, seed: int | None) -> None:
        """The seed of answers that get none; None: a new one each time. Raises ConfigError."""
        self._seed = seeds.fixed(seed)

    # ---- sampling ------------------------------------------------------------------------------

    def _check_grammar(self, grammar: Any) -> None:
        text = getattr(grammar, "_grammar", None)
        if text is None or text != self._grammar_checked:
            check_grammar(grammar, self._model)
            self._grammar_checked = text

    def _init_sampler(self, *args: Any, logits_processor: Any = None, grammar: Any = None, **kwargs: Any) -> Any:
        if grammar is not None:
            self._check_grammar(grammar)
        given = as_list(logits_processor)
        self._processors = Processors([self._as_callback(one) for one in given]) if given else None
        self._may_leave_none = bool(given) or grammar is not None
        chain = None if self._processors is None else [self._processors]
        return super()._init_sampler(*args, logits_processor=chain, grammar=grammar, **kwargs)

    def sample(self, *args: Any, **kwargs: Any) -> int:
        """Llama.sample; right after load_state it works on the logits that the state holds.

        Raises RestkvError when nothing was read before, or when a grammar or a processor leaves no token.
        """
        if self.n_tokens == 0 or (self._requires_eval and self._restored is None):
            raise RestkvError("there is nothing to go on from; read a text first")
        idx = kwargs.pop("idx", None)
        sampler = self._sampler or self._init_sampler(*args, **kwargs)
        if self._restored is None and not self._may_leave_none:
            return int(sampler.sample(self._ctx, -1 if idx is None else idx - self.n_tokens))
        data = np.zeros(self._n_vocab, dtype=_TOKEN_DATA)
        data["id"], data["logit"] = np.arange(self._n_vocab), self._last_logits()
        array = c.llama_token_data_array(
            data=data.ctypes.data_as(c.llama_token_data_p), size=self._n_vocab, selected=-1, sorted=False
        )
        c.llama_sampler_apply(sampler.sampler, ctypes.byref(array))
        if self._processors is not None:
            self._processors.check()
        chosen = array.data[array.selected] if 0 <= array.selected < array.size else None
        if chosen is None or not chosen.logit > -np.inf:
            raise RestkvError("the grammar or the logits_processor leaves no token of this model to go on with")
        token = int(chosen.id)
        sampler.accept(token)
        return token
