"""The text of an answer while its tokens arrive: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

# What foreign tokenizers write for a character whose bytes have not all come.
_UNFINISHED = "\ufffd".encode()


class AnswerText:
    """Takes the bytes of an answer piece by piece and gives its text as soon as it is certain.

    Bytes that may be the beginning of a stop string, or of a character, wait. All that it gives together is
    the text up to the first stop string, decoded at once; bytes that are no character are left out.
    """

    def __init__(self, stops: Sequence[bytes] = ()) -> None:
        self.stopped = False  # a stop string has come
        self._stops = [stop for stop in stops if stop]
        self._waiting = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def add(self, piece: bytes) -> str:
        """The text that is certain now."""
        self._waiting += piece
        found = [at for stop in self._stops if (at := self._waiting.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._waiting = self._waiting[: min(found)]
            return self.end()
        certain = len(self._waiting) - max((_begun(self._waiting, stop) for stop in self._stops), default=0)
        text, self._waiting = self._waiting[:certain], self._waiting[certain:]
        return self._decoder.decode(text)

    def end(self) -> str:
        """The text that waited; nothing comes after it."""
        text, self._waiting = self._waiting, b""
        return self._decoder.decode(text, final=True)


def _begun(text: bytes, stop: bytes) -> int:
    """Length of the longest beginning of a stop string that a text ends with."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


class ForeignPieces:
    """Bytes of one token after the other, by a tokenizer that only knows the text of all of them together."""

    def __init__(self, detokenize: Callable[[list[int]], bytes]) -> None:
        self._detokenize = detokenize
        self._tokens: list[int] = []
        self._given = 0

    def __call__(self, token: int) -> bytes:
        self._tokens.append(token)
        text = self._detokenize(self._tokens)
        if text.endswith(_UNFINISHED):
            return b""
        piece, self._given = text[self._given :], len(text)
        return piece
