"""Plain repetition: an answer whose end is one block of text, again and again."""

from __future__ import annotations

from ...sampling import REPEATED_CHARACTERS, REPEATED_TIMES

# Characters whose place before tells the length of the block; what repeats is longer than this.
_PROBE = 32
# Longest block that is looked for.
_BLOCK = 2048
TAIL = _BLOCK * REPEATED_TIMES


def period(text: str) -> int:
    """Length of the block that a text ends in, REPEATED_TIMES times or more over REPEATED_CHARACTERS characters or
    more; 0 when there is none. The last TAIL characters of a text are enough."""
    before = text.rfind(text[-_PROBE:], 0, -1)
    if before < 0:
        return 0
    block = len(text) - _PROBE - before
    length = max(REPEATED_CHARACTERS, REPEATED_TIMES * block)
    repeats = length <= len(text) and text[-length:-block] == text[-length + block :]
    return block if repeats else 0


def once(text: str) -> str:
    """A text whose last block is there once."""
    block = period(text)
    if not block:
        return text
    start = len(text) - block
    while start > 0 and text[start - 1] == text[start - 1 + block]:
        start -= 1
    return text[: start + block].rstrip()
