"""A model as llama_cpp sees it, with a tokenizer that no text and no token id crashes."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from ..errors import ConfigError, RestkvError
from ..native.binding import c, internals
from .guard import Freed
from .stack import call_on_stack

# Most of the patterns that cut a text into words are run by std::regex, which recurses for every character of a match:
# 325 bytes of stack each, as GCC 12 compiles it. No match goes on from a line's end into a letter or a digit.
_BREAK = re.compile(rb"\n(?=[0-9A-Za-z])")
_SAFE_LINE = 1024
_STACK_BASE = 1 << 20
_STACK_PER_BYTE = 1 << 10
_MOST_BYTES = 2**31 - 1


def _longest_match(text: bytes) -> int:
    """Bytes that one match can have at most."""
    longest, start = 0, 0
    for end in _BREAK.finditer(text):
        longest, start = max(longest, end.start() - start), end.start()
    return max(longest, len(text) - start)


class Model(Freed, internals.LlamaModel):  # type: ignore[misc, unused-ignore]
    """LlamaModel with checks before each call of the tokenizer."""

    _POINTERS = ("model", "vocab")

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        """Tokens of a text, with one int object per token id: of a long text each object would take 28 bytes more.

        Raises ConfigError for a text of 2 GiB and more.
        """
        if len(text) > _MOST_BYTES:
            raise ConfigError("a text of 2 GiB cannot be tokenized at once; give it in pieces")
        room = len(text) // 2 + 64
        while True:
            tokens, n = self._tokenize(text, room, add_bos, special)
            if n >= 0:
                break
            if -n <= room:
                raise RestkvError("the tokenizer of this model failed on this text")
            room = -n
        known: dict[int, int] = {}
        return [known.setdefault(token, token) for token in islice(tokens, n)]

    def _tokenize(self, text: bytes, room: int, add_bos: bool, special: bool) -> tuple[Any, int]:
        tokens = (c.llama_token * room)()

        def work() -> int:
            return int(c.llama_tokenize(self.vocab, text, len(text), tokens, room, add_bos, special))

        longest = _longest_match(text)
        return tokens, work() if longest <= _SAFE_LINE else call_on_stack(work, _STACK_BASE + _STACK_PER_BYTE * longest)

    def token_to_piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token's text. Raises ConfigError for an id outside the vocabulary."""
        n_vocab = self.n_vocab()
        if not 0 <= token < n_vocab:
            raise ConfigError(f"token {token} is not one of this model's; give ids from 0 to {n_vocab - 1}")
        size = 32
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = c.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """The text of tokens; the space that some tokenizers put behind the token that begins a text is left out."""
        text = b"".join(self.token_to_piece(int(token), special) for token in tokens)
        return text[1:] if text[:1] == b" " and tokens[0] == self.token_bos() else text
