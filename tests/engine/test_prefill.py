"""What guides a guided prefill: the prompt's end from the question on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from restkv_local.engine.prefill import tail_from

PIECES = [b"book", b".", b"\n\n", b"Who", b" is", b" it", b"?", b"<end>", b"\n", b"<bot>"]


def pieces(tokens: Sequence[int]) -> list[bytes]:
    return [PIECES[token] for token in tokens]


@pytest.mark.parametrize(
    ("question", "first"),
    [(b"Who is it?", 3), (b"  Who is it?\n", 3), (b"it?", 5), (b"ho is", 3), (b"<bot>", 9), (b"Where?", None)],
)
def test_tail_starts_with_the_token_of_the_first_byte(question: bytes, first: int | None) -> None:
    prompt = list(range(len(PIECES)))
    assert tail_from(question, prompt, pieces) == ([] if first is None else prompt[first:])


def test_last_occurrence_counts() -> None:
    assert tail_from(b"Who", [3, 0, 3, 9], pieces) == [3, 9]
