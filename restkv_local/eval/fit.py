"""Messages of a wanted length: how many units go in, and how a document is cut in the middle.

A tokenizer is asked as seldom as can be: counts are close to linear in what is added, so the next guess is on the line
through the last two counts. A search costs a handful of counts, and the next sample of a task starts where the last one
ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from ..errors import ConfigError
from .sample import CountTokens, Sample

# A search may stop this far below the limit, as a part of it: about the length, and never above.
SLACK = 0.01
# The same where a document is cut.
SLACK_CUT = 0.002

AnySample = TypeVar("AnySample", bound=Sample)


def size(count: CountTokens, sample: Sample) -> int:
    """Tokens of all that the model reads before it answers, without the frame of a chat. In a chat the beginning of the
    answer stands apart from the question, so it is counted apart."""
    text = f"{sample.context}{sample.question}"
    if not sample.chat:
        return count(f"{text}{sample.answer_prefix}")
    return count(text) + (count(sample.answer_prefix) if sample.answer_prefix else 0)


def most(
    measure: Callable[[int], int],
    limit: int,
    least: int,
    guess: int,
    ceiling: int | None = None,
    slack: float = SLACK,
) -> int | None:
    """The largest number of units, or nearly, whose measured size is at most `limit`; None when `least` is too large.

    measure: size of so many units, growing about linearly. What is returned was measured and fits, and is within
    `slack` of the limit, or one unit below what does not fit, or the ceiling.
    """
    low, low_size = least, measure(least)
    if low_size > limit:
        return None
    if ceiling is not None and ceiling <= least:
        return low
    high: int | None = None
    high_size = 0
    step = max(guess, least + 1)
    while high is None or high - low > 1:
        if ceiling is not None and step >= ceiling and high is None:
            step = ceiling
        size = measure(step)
        if size <= limit:
            low, low_size = step, size
            if limit - size <= slack * limit or step == ceiling:
                break
        else:
            high, high_size = step, size
        step = _next(low, low_size, high, high_size, int(limit * (1 - slack / 2)))
    return low


def _next(low: int, low_size: int, high: int | None, high_size: int, aim: int) -> int:
    """Where the line through what is known reaches the aim, strictly between the bounds."""
    if high is None:
        per_unit = max(low_size, 1) / max(low, 1)
        return low + max(1, min(int((aim - low_size) / per_unit), 4 * low + 16))
    part = (aim - low_size) / max(high_size - low_size, 1)
    # Never nearer to an end than an eighth, so that a bent line still closes in.
    part = min(max(part, 0.125), 0.875)
    return min(max(low + int(part * (high - low)), low + 1), high - 1)


@dataclass
class Filler:
    """Makes samples of one task fill a length. It remembers how many units the last sample took."""

    task: str
    count: CountTokens
    length: int
    least: int = 1
    guess: int = 64

    def fill(self, build: Callable[[int], Sample], ceiling: int | None = None) -> Sample:
        """The sample with as many units as fit. build: the same sample with so many units, deterministic.

        Raises ConfigError when `least` units do not fit, with the length that they need.
        """
        sizes: dict[int, int] = {}

        def measure(units: int) -> int:
            if units not in sizes:
                sizes[units] = size(self.count, build(units))
            return sizes[units]

        units = most(measure, self.length, self.least, self.guess, ceiling)
        if units is None:
            raise ConfigError(f"{self.task} needs at least {sizes[self.least]} tokens; {self.length} are given")
        self.guess = units
        return build(units)


def cut_middle(task: str, count: CountTokens, length: int, sample: AnySample) -> AnySample:
    """The sample with the middle of its context left out, so that the message has at most `length` tokens. Its label
    "cut" says whether anything was left out: "no" or "middle".

    As LongBench and InfiniteBench do it: of the whole message, the first half of the tokens and the last half remain.
    Raises ConfigError when the last half has no room for the question.
    """
    if size(count, sample) <= length:
        return replace(sample, labels={**sample.labels, "cut": "no"})
    apart = count(sample.answer_prefix) if sample.chat and sample.answer_prefix else 0
    ending = sample.question if sample.chat else f"{sample.question}{sample.answer_prefix}"
    whole = f"{sample.context}{ending}"
    limit = length - apart
    half = limit // 2
    if half < 1 or count(ending) > half:
        raise ConfigError(f"{task}: the question alone takes more than half of {length} tokens; raise the length")
    n, end = len(whole), len(ending)
    guess = max(1, n * half // count(whole))
    head = most(lambda kept: count(whole[:kept]), half, 1, guess, n, SLACK_CUT) or 0
    tail = most(lambda kept: count(whole[n - kept :]), half, end, max(guess, end + 1), n, SLACK_CUT) or end
    # Two cuts that are not at the borders of tokens may cost a token or two where they meet.
    while head and count(whole[:head] + whole[n - tail :]) > limit:
        head -= min(head, 4)
    return replace(sample, context=whole[:head] + whole[n - tail : n - end], labels={**sample.labels, "cut": "middle"})
