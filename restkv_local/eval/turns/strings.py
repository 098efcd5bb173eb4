"""Strings without sense: values of keys, words of which the beginning and the end are known, chains of variables, lists
of numbers."""

from __future__ import annotations

import random
import string

from ...errors import ConfigError
from .material import THINGS, Material, Question, codes

# Pairs beside those that are asked for, per question.
OTHER_PAIRS = 2
# Hops of a chain: a variable of h hops was set by way of h others.
HOPS = (2, 3, 4)
NUMBERS = 12
_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_END = 4


def pairs(rng: random.Random, n: int) -> Material:
    """Keys of eight hexadecimal digits and values of six digits, among others."""
    total = n * (1 + OTHER_PAIRS)
    keys = [f"{number:08x}" for number in rng.sample(range(1 << 31, 1 << 32), total)]
    values = dict(zip(keys, codes(rng, total, 6), strict=True))
    lines = {key: f'{{"{key}": "{value}"}}' for key, value in values.items()}
    questions = [
        Question(
            "pairs", f'What is the value of the key "{key}"?', f'The value of the key "{key}" is "', values[key],
            (lines[key],),
        )
        for key in keys[:n]
    ]  # fmt: skip
    return Material(tuple((line,) for line in lines.values()), tuple(questions))


def affixes(rng: random.Random, n: int) -> Material:
    """Invented words. Each that is asked for stands among one with its beginning and one with its end."""
    found: dict[str, None] = {}
    asked: list[str] = []
    while len(asked) < n:
        word = _word(rng)
        same_start, same_end = word[:_END] + _word(rng)[_END:], _word(rng)[:-_END] + word[-_END:]
        group = [word, same_start, same_end]
        ends = [(other[:_END], other[-_END:]) for other in (*found, *group)]
        if len(set(ends)) < len(ends):  # two words that one question would fit, seldom
            continue
        found.update(dict.fromkeys(group))
        asked.append(word)
    questions = [
        Question(
            "affixes",
            f'Which of the invented words begins with "{word[:_END]}" and ends with "{word[-_END:]}"?',
            'It is the word "',
            f'{word}"',
            (_invented(word),),
            (word,),
        )
        for word in asked
    ]
    return Material(tuple((_invented(word),) for word in found), tuple(questions))


def tracing(rng: random.Random, n: int) -> Material:
    """Chains of variables: one has a value, each other that of the one before. Asked for is the value of the last."""
    hops = [HOPS[number % len(HOPS)] for number in range(n)]
    total = sum(hops) + n
    names: dict[str, None] = {}
    while len(names) < total:
        names["".join(rng.choices(string.ascii_uppercase, k=5))] = None
    left = iter(names)
    planted, questions = [], []
    for h, value in zip(hops, codes(rng, n), strict=True):
        chain = [next(left) for _ in range(h + 1)]
        lines = [f"VAR {chain[0]} = {value}."]
        lines += [f"VAR {new} = VAR {old}." for old, new in zip(chain, chain[1:], strict=False)]
        planted.append(tuple(lines))
        text = f"What is the value of VAR {chain[-1]}?"
        questions.append(Question(f"tracing {h}", text, f"The value of VAR {chain[-1]} is ", value, tuple(lines)))
    return Material(tuple(planted), tuple(questions))


def extremes(rng: random.Random, n: int) -> Material:
    """Lists of numbers; asked for are the largest and the smallest of each."""
    n_lists = -(-n // 2)
    if n_lists > len(THINGS):
        raise ConfigError(f"the kind 'extremes' has {2 * len(THINGS)} questions, and {n} are wanted; lower --questions")
    planted, questions = [], []
    for thing in rng.sample(THINGS, n_lists):
        numbers = codes(rng, NUMBERS, 4)
        line = f"The numbers in the {thing} are {', '.join(numbers[:-1])} and {numbers[-1]}."
        planted.append((line,))
        for word, pick in (("largest", max), ("smallest", min)):
            text = f"What is the {word} of the numbers in the {thing}?"
            stem = f"The {word} of the numbers in the {thing} is "
            questions.append(Question("extremes", text, stem, pick(numbers), (line,)))
    return Material(tuple(planted), tuple(questions[:n]))


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(5))


def _invented(word: str) -> str:
    return f'One of the invented words is "{word}".'
