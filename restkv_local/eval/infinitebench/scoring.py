"""Measures of InfiniteBench's tasks, as its official script has them (src/compute_scores.py of OpenBMB/InfiniteBench).

An answer and the right ones in, 0 to 1 out. Where the script would fail, the score is 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCD"
_NUMBER = re.compile(r"\d+\.\d+|\d+")


def first_number(answer: str, references: Sequence[str]) -> float:
    """1 when the first run of digits in the answer is the right one, as text (PassKey, Number)."""
    found = re.search(r"[0-9]+", answer)
    return float(found is not None and found[0] == references[0])


def any_word(answer: str, references: Sequence[str]) -> float:
    """1 when the right text is one of the answer's words, which end at white space and any of :"'.,?!{} (KV)."""
    return float(references[0] in _words(answer, "\n:\"'.,?!{}"))


def dialogue(answer: str, references: Sequence[str]) -> float:
    """As any_word, with the answer in upper case (En.Dia). Only the first of the right names counts."""
    return float(references[0] in [word.upper() for word in _words(answer, "\n:\"'.,?!{}")])


def last_integer(answer: str, references: Sequence[str]) -> float:
    """1 when the last word of the answer is the right integer (Code.Run)."""
    words = _words(answer, "\n.`'\":")
    try:
        return float(bool(words) and int(words[-1]) == int(references[0]))
    except ValueError:
        return 0.0


def found_number(answer: str, references: Sequence[str]) -> float:
    """1 when the first number of the answer equals the right one (Math.Find). A number with a decimal point is not a
    whole one, even if it is as large."""
    found = _NUMBER.search(answer)
    if found is None or ("." in found[0] and "." not in references[0]):
        return 0.0
    return float(float(found[0]) == float(references[0]))


def leading_numbers(answer: str, references: Sequence[str]) -> float:
    """The part of the right numbers that the answer gives in order from its start, up to the first wrong one
    (Math.Calc)."""
    given = re.findall(r"[0-9]+", answer)
    right = 0
    for ours, theirs in zip(given, references, strict=False):
        if ours.lstrip("0") != theirs.lstrip("0"):
            break
        right += 1
    return right / len(references)


def debug(answer: str, references: Sequence[str]) -> float:
    """1 when the answer begins with the right letter and "." or ":", or has it or the function's name right after one
    of a few phrases, such as "answer is:" (Code.Debug). references: name of the function, letter."""
    name, letter = references[0], references[1]
    text = answer.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    text = _blank(text, ("\n", "`", "'", '"', "-", "*", "Option", "option"))
    after = _after(text, ("answer is:", "is:", "answer:", "correct option is:"))
    return float(after is not None and after.startswith((letter, name)))


def choice(answer: str, references: Sequence[str]) -> float:
    """1 when the answer chooses the right option (En.MC): by its first character, by being the option's text or letter,
    after a phrase such as "answer is", or by the first word that is A, B, C or D. references: text, letter."""
    text = answer.strip()
    if not text:
        return 0.0
    if text[0] in LETTERS:
        return float(text[0] in references)
    if text in references:
        return 1.0
    text = _blank(text, ("\n", '"', "'", ".", ",", "?", "!", "{", "}"))
    after = _after(text, ("answer is:", "answer:", "answer is", "option is"))
    if after is not None:
        return float(after.startswith(tuple(references)))
    # The script looks for a word that is part of "ABCD", so "AB" counts as a choice too.
    word = next((word for word in text.split() if word in LETTERS), None)
    return float(word is not None and word in references)


def _words(text: str, ends: str) -> list[str]:
    return text.translate(str.maketrans(ends, " " * len(ends))).split()


def _blank(text: str, parts: Sequence[str]) -> str:
    """The text with blanks for these parts, and no two blanks in a row."""
    for part in parts:
        text = text.replace(part, " ")
    return re.sub(" {2,}", " ", text)


def _after(text: str, phrases: Sequence[str]) -> str | None:
    """What follows the first of these phrases that the text has, and one character; None when it has none. Nothing
    that follows is an empty text."""
    for phrase in phrases:
        place = text.find(phrase)
        if place >= 0:
            return text[place + len(phrase) + 1 :]
    return None
