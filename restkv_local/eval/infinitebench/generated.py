"""InfiniteBench's five synthetic tasks, generated to a length.

What is drawn and from which ranges follows the official generator (data/construct_synthetic_dataset.py of
OpenBMB/InfiniteBench); the number of lines, pairs, numbers or functions follows the length instead of being fixed.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..fit import Filler
from ..ruler.text import NOISE
from ..sample import CountTokens, Sample
from . import scoring

# Official lengths of answers.
MAX_TOKENS = {"passkey": 6, "number_string": 12, "kv_retrieval": 50, "math_find": 3, "code_run": 5}

Build = Callable[[random.Random, float, int], Sample]
"""A sample from random numbers, the depth of what is sought (0 to 1) and the number of units."""


@dataclass(frozen=True)
class Generated:
    """One synthetic task. Samples are spread evenly over the depths."""

    name: str
    build: Build
    measure: Callable[[str, Sequence[str]], float]
    least: int = 1

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """See Task."""
        filler = Filler(f"infinitebench {self.name}", count_tokens, length, self.least)
        return [filler.fill(partial(self._sample, n, seed, index)) for index in range(n)]

    def score(self, sample: Sample, answer: str) -> float:
        """The task's official measure."""
        return self.measure(answer, sample.references)

    def _sample(self, n: int, seed: int, index: int, n_units: int) -> Sample:
        depth = index / (n - 1) if n > 1 else 0.5
        sample = self.build(random.Random(f"{self.name}/{seed}/{index}"), depth, n_units)
        return replace(sample, id=f"{index}-of-{n}")


def _hidden(rng: random.Random, depth: float, n_lines: int, what: str, key: str, max_tokens: int) -> Sample:
    place = round(depth * n_lines)
    needle = f"The {what} is {key}. Remember it. {key} is the {what}."
    text = "\n".join([*[NOISE] * place, needle, *[NOISE] * (n_lines - place)])
    return Sample(
        id="",
        context=f"Something important is hidden in the text below. Find it and keep it in mind.\n\n{text}\n\n",
        question=f"What is the {what}?",
        answer_prefix=f"The {what} is ",
        references=(key,),
        max_tokens=max_tokens,
        labels={"depth": round(depth, 2)},
    )


def passkey(rng: random.Random, depth: float, n_lines: int) -> Sample:
    """Five digits among repeated lines."""
    key = "".join(str(rng.randrange(10)) for _ in range(5))
    return _hidden(rng, depth, n_lines, "pass key", key, MAX_TOKENS["passkey"])


def number_string(rng: random.Random, depth: float, n_lines: int) -> Sample:
    """Ten digits, five of them doubled from their neighbours, among repeated lines."""
    digits = [str(rng.randrange(10)) for _ in range(5)]
    for _ in range(5):
        place = rng.randrange(len(digits))
        digits.insert(place, digits[place])
    return _hidden(rng, depth, n_lines, "sequence of digits", "".join(digits), MAX_TOKENS["number_string"])


def kv_retrieval(rng: random.Random, depth: float, n_pairs: int) -> Sample:
    """The value of one key of a JSON object; keys and values are UUIDs."""
    values = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(2 * n_pairs)]
    pairs = dict(zip(values[::2], values[1::2], strict=True))
    key = list(pairs)[round(depth * (len(pairs) - 1))]
    return Sample(
        id="",
        context=f"Find the value that belongs to a key of the JSON object below.\n\n{json.dumps(pairs)}\n\n",
        question=f'Key: "{key}"',
        answer_prefix="The value of this key is: ",
        references=(pairs[key],),
        max_tokens=MAX_TOKENS["kv_retrieval"],
        labels={"depth": round(depth, 2)},
    )


# Which number is asked for: its name, and its place among the different numbers in order (None: the median of all).
FIND: tuple[tuple[str, int | None], ...] = (
    ("largest", -1),
    ("second largest", -2),
    ("third largest", -3),
    ("smallest", 0),
    ("second smallest", 1),
    ("third smallest", 2),
    ("median", None),
)
_FIND_MAX = 99


def math_find(rng: random.Random, depth: float, n_numbers: int) -> Sample:
    """One number of a list of whole numbers from 0 to 99, of which the range is narrowed at the end that is asked
    about. The list has an odd length, so the median is one of it."""
    name, place = rng.choice(FIND)
    low, high = 0, _FIND_MAX
    if place is None:
        low, high = rng.choice(((rng.randint(0, 19), high), (low, rng.randint(79, _FIND_MAX))))
    elif place < 0:
        high = rng.randint(79, _FIND_MAX)
    else:
        low = rng.randint(0, 19)
    numbers = [rng.randint(low, high) for _ in range(n_numbers | 1)]
    right = sorted(numbers)[len(numbers) // 2] if place is None else sorted(set(numbers))[place]
    return Sample(
        id="",
        context=f"Find the {name} number of the list below.\n\n{json.dumps(numbers)}\n\n",
        question="Answer with one number and no other words.",
        answer_prefix=f"The {name} number of the list is: ",
        references=(str(right),),
        max_tokens=MAX_TOKENS["math_find"],
        labels={"asked": name},
    )


# Layers of functions, each calling one of the next layer; what a function adds; the argument.
_LAYERS = (2, 4, 6, 8, 10)
_ADDS = (-12, 17)
_ARGUMENTS = (-10, 10)
CODE_LEAST = max(_LAYERS)


def code_run(rng: random.Random, depth: float, n_functions: int) -> Sample:
    """The value of one call among many small functions that call each other 1 to 9 deep."""
    n_layers = rng.choice(_LAYERS)
    argument = rng.randint(*_ARGUMENTS)
    places = random.Random(rng.getrandbits(64))
    names = places.sample(range(1, 2 * n_functions + 1), n_functions)
    layers = [names[layer::n_layers] for layer in range(n_layers)]
    calls: dict[int, tuple[int | None, int]] = {}
    for layer, following in zip(layers, [*layers[1:], []], strict=True):
        for name in layer:
            calls[name] = (rng.choice(following) if following else None, rng.randint(*_ADDS))
    start = rng.choice(layers[0])
    value, at = argument, start
    while True:
        callee, add = calls[at]
        value += add
        if callee is None:
            break
        at = callee
    code = "\n\n".join(_function(name, *calls[name]) for name in sorted(calls))
    call = f"func_{start}({argument})"
    return Sample(
        id="",
        context=f"Below is Python code. One of its functions is called func_{start}.\n\n{code}\n\n",
        question=f"Work out the exact value of {call}.",
        answer_prefix=f"The value of {call} is ",
        references=(str(value),),
        max_tokens=MAX_TOKENS["code_run"],
        labels={"calls": n_layers},
    )


def _function(name: int, callee: int | None, add: int) -> str:
    inner = "x" if callee is None else f"func_{callee}(x)"
    change = "" if add == 0 else f" {'+' if add > 0 else '-'} {abs(add)}"
    return f"def func_{name}(x):\n    return {inner}{change}"


TASKS: tuple[Generated, ...] = (
    Generated("passkey", passkey, scoring.first_number),
    Generated("number_string", number_string, scoring.first_number),
    Generated("kv_retrieval", kv_retrieval, scoring.any_word),
    Generated("math_find", math_find, scoring.found_number, least=51),
    Generated("code_run", code_run, scoring.last_integer, least=CODE_LEAST),
)
