"""Means with 95 % intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_Z = statistics.NormalDist().inv_cdf(0.975)


class Mean(NamedTuple):
    """A mean of n values with its 95 % interval; low and high are None where one value has no interval."""

    n: int
    mean: float
    low: float | None
    high: float | None


def mean_of(values: Sequence[float], *, share: bool = False) -> Mean:
    """Mean with Student's t interval. share: values lie in [0, 1], and so does the interval; where all are 0 or 1 it is
    Wilson's, which has a width where all agree. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values have no mean")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Mean(1, mean, None, None)
    if share and all(value in (0.0, 1.0) for value in values):
        return Mean(len(values), mean, *wilson(round(sum(values)), len(values)))
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    low, high = mean - half, mean + half
    if share:
        low, high = max(0.0, low), min(1.0, high)
    return Mean(len(values), mean, low, high)


def difference_of(ours: Sequence[float], theirs: Sequence[float]) -> Mean:
    """Mean of the paired differences ours - theirs with Student's t interval. Raises ValueError for no pairs."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if not differences:
        raise ValueError("no pairs have no mean difference")
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return Mean(1, mean, None, None)
    half = student(len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return Mean(len(differences), mean, mean - half, mean + half)


def compare(log_probs: Sequence[float], full: Sequence[float] | None) -> dict[str, float | None]:
    """The mean, and its difference to the full cache's with a 95 % interval over the samples (paired, Student's t)."""
    row: dict[str, float | None] = {"mean": statistics.fmean(log_probs)}
    if full is None:
        return row | {"difference": None, "difference_min": None, "difference_max": None}
    found = difference_of(log_probs, full)
    return row | {"difference": found.mean, "difference_min": found.low, "difference_max": found.high}


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson (1927)."""
    share, z2 = n_right / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def student(freedom: int) -> float:
    """97.5 % point of Student's t: exact for 1 and 2, else the expansion of Cornish and Fisher (Abramowitz and
    Stegun 26.7.5), within 0.01 from 3 degrees of freedom on."""
    if freedom < 3:
        return (12.7062, 4.3027)[freedom - 1]
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** (i + 1) for i, term in enumerate(terms))
