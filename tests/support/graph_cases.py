"""The devices that the tests of the graphs run on, and how far another processor may be off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import devices

DEVICES = devices.found()
each_device = pytest.mark.parametrize("device", DEVICES)
# Relative error of scores, and share of equal cells, where another processor computes.
DEVICE_ERROR, DEVICE_SETS = 1e-3, 0.995


def assert_most_equal(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    """Of all chosen cells, at least DEVICE_SETS agree."""
    assert len(mine) == len(theirs)
    same = sum(len(np.intersect1d(a, b)) for a, b in zip(mine, theirs, strict=True))
    assert same >= DEVICE_SETS * sum(map(len, theirs))
