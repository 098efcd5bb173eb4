"""Plain repetition is found where it is, and nowhere else."""

from __future__ import annotations

import pytest

from restkv_local.bench.prose import prose
from restkv_local.cli.chat.repetition import TAIL, once, period

PARIS = "Paris, la Révérance, est la Révérance. "


@pytest.mark.parametrize("block", [PARIS, "a", "\n", "ab", "x = 0\n", prose(250)[:1500]])
def test_a_block_again_and_again(block: str) -> None:
    enough = block * (4 + 500 // len(block))
    before = "The capital is this: "
    assert period(before + enough) == len(block)
    assert period((before + enough)[-TAIL:]) == len(block)
    assert period(before + enough + block[: len(block) // 2]) == len(block)
    left = once(before + enough)
    assert left.startswith((before + block).rstrip()) and len(left) < 25 + 2 * len(block)


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "a" * 300, PARIS * 3, "-" * 120 + "\n", "| a | b |\n|---|---|\n" * 3, prose(3000),
        "".join(f"{i}, " for i in range(2000)), "0, " * 100 + "1", PARIS * 20 + "That is all.",
        (prose(250)[:1500]) * 3,
    ],
)  # fmt: skip
def test_texts_that_go_on(text: str) -> None:
    assert period(text) == 0 and once(text) == text
