"""Inputs and comparisons that the tests of the score functions share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from restkv_local import native
from restkv_local.errors import LibraryError
from restkv_local.native import kernels
from restkv_local.reference import score, score_lean

SCORES: dict[str, Callable[..., Any]] = {"reference": score, "lean": score_lean, "native": kernels.score}


@functools.cache
def native_missing() -> str | None:
    """Why the native library cannot be used; None when it can, or when RESTKV_REQUIRE_NATIVE says it must be there."""
    if os.environ.get("RESTKV_REQUIRE_NATIVE"):
        return None
    try:
        native.library_dir()
    except LibraryError as error:
        return str(error)
    return None


def score_function(name: str) -> Callable[..., Any]:
    """One of SCORES; skips the test when it is the native one and the library is not there."""
    missing = native_missing() if name == "native" else None
    if missing:
        pytest.skip(missing)
    return SCORES[name]


def random_arrays(
    seed: int, *, heads: int = 4, kv_heads: int = 2, n: int = 200, d: int = 32, window: int = 16, c: int = 48
) -> dict[str, Any]:
    """q_win, k, v, wo of a random layer, float16-exact, with a sink at cell 0 and attention that moves."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((kv_heads, n, d))
    v = rng.standard_normal((kv_heads, n, d)) * np.exp(rng.standard_normal((kv_heads, n, 1)))
    q = rng.standard_normal((heads, window, d))
    kv_of = np.arange(heads) // (heads // kv_heads)
    q += 4.0 / np.sqrt(d) * k[kv_of, :1]
    walk = (rng.random((heads, 1)) * n + rng.standard_normal((heads, 1)) * np.arange(window) * 3).astype(int) % n
    q += 3.0 / np.sqrt(d) * k[kv_of[:, None], walk]
    wo = rng.standard_normal((c, heads * d)) / np.sqrt(heads * d)
    arrays = {"q_win": q, "k": k, "v": v, "wo": wo}
    return {name: array.astype(np.float16).astype(np.float32) for name, array in arrays.items()}


def gapped_positions(seed: int, kv_heads: int, n: int, window: int) -> np.ndarray:
    """[kv_heads, n] ascending positions with gaps, different per head; the last `window` are the same for all."""
    rng = np.random.default_rng(seed)
    past = n - window
    span = 3 * past
    rows = []
    for _ in range(kv_heads):
        clumped = np.flatnonzero(np.repeat(rng.random(span // 4 + 1) < 0.5, 4))
        kept = np.sort(rng.permutation(np.union1d(clumped[clumped < span], rng.permutation(span)[:past]))[:past])
        rows.append(np.concatenate([kept, span + np.arange(window)]))
    return np.array(rows)


def assert_scores_close(got: np.ndarray, want: np.ndarray, rtol: float) -> None:
    """Same shape and type, and every score within rtol of its own size."""
    assert got.shape == want.shape
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=rtol, atol=0)


def assert_same_sets(got: np.ndarray, want: np.ndarray, scores: np.ndarray, rtol: float = 2e-5) -> None:
    """Equal index sets [sets, C], -1 behind shorter ones; cells that differ have equal scores (a tie at the cut)."""
    assert got.shape == want.shape
    np.testing.assert_array_equal(got < 0, want < 0)
    for mine, theirs, y in zip(got, want, scores, strict=True):
        mine, theirs = mine[mine >= 0], theirs[theirs >= 0]
        assert (np.diff(mine) > 0).all()
        extra, missing = np.setdiff1d(mine, theirs), np.setdiff1d(theirs, mine)
        np.testing.assert_allclose(np.sort(y[extra]), np.sort(y[missing]), rtol=rtol)
