"""What the last queries look at, in the library against the reference engine."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from test_parity import prompt
from test_recall import BUDGET, CAPACITY, CONFIG, Both

import devices
import models
from evicting import Evicting
from restkv_local import native
from restkv_local.config import EvictConfig
from restkv_local.errors import ConfigError, EvictionError, ModelError
from restkv_local.reference.model import ReferenceEngine

pytestmark = pytest.mark.usefixtures("library")


def check(ours: Evicting, theirs: ReferenceEngine, n_rows: int) -> None:
    """The same weights, up to the rounding of a model's own activations; and they tell positions apart."""
    n = theirs.n_tokens - n_rows
    a, b = ours.look(n_rows, n), theirs.look(n_rows, n)
    assert 0.2 < b.max() <= 1.0 and b.max() > 5 * np.median(b)
    assert np.abs(a - b).mean() < 2e-3 and np.quantile(np.abs(a - b), 0.98) < 0.02, np.abs(a - b).max()


@pytest.mark.parametrize("family", models.FAMILIES)
def test_every_family_with_an_archive(family: str, folder: Path) -> None:
    path = models.write_random(folder / f"{family}.gguf", family, seed=3)
    with Both(path) as both:
        both.read(prompt(320, 450))
        both.read(prompt(320, 20, seed=9))
        both.answer(11)
        check(both.native, both.reference, 12)


@pytest.mark.parametrize("allocation", ["uniform", "pyramid", "ada"])
def test_heads_with_cells_of_their_own(allocation: str, folder: Path) -> None:
    path = models.write_random(folder / "shares.gguf", "llama", seed=5, n_head=6, n_head_kv=3)
    config = EvictConfig(window=16, allocation=allocation)
    reference = ReferenceEngine(path, BUDGET, CAPACITY, config)
    assert reference.shares is not None
    with Evicting(path, BUDGET, CAPACITY, config, shares=reference.shares) as ours:
        for each in (ours, reference):
            each.decode(prompt(320, 80))
        check(ours, reference, 10)  # nothing has been evicted yet
        for each in (ours, reference):
            for chunk in (90, 50, 10):
                each.decode(prompt(320, chunk, seed=chunk))
        assert ours.stats.n_evictions == reference.n_evictions > 0
        check(ours, reference, 10)


@pytest.mark.parametrize("device", devices.found())
def test_on_every_device(device: str, folder: Path) -> None:
    path = models.write_random(folder / "device.gguf", "gpt-oss", seed=3)
    with Both(path, device=device, n_threads=2) as both:
        both.read(prompt(320, 300))
        both.answer(11, 9)
        check(both.native, both.reference, 9)


def test_parts_of_an_answer_add_up(folder: Path) -> None:
    path = models.write_random(folder / "parts.gguf", "llama", seed=5)
    with Evicting(path, BUDGET, CAPACITY, CONFIG) as ours:
        ours.decode(prompt(320, 100))
        ours.decode(prompt(320, 12, seed=4))
        whole = ours.look(12, 100)
        ours.cut(106)
        parts = ours.look(6, 100)
        assert not np.array_equal(parts, whole)
        ours.decode(prompt(320, 12, seed=4)[6:])
        looked = ctypes.c_uint32(0)
        ours.call(native.lib().restkv_look, 6, parts.ctypes.data, 100, ctypes.byref(looked))
        assert looked.value == 6
        np.testing.assert_allclose(parts, whole, atol=2e-3)


def test_what_is_refused(folder: Path) -> None:
    path = models.write_random(folder / "refused.gguf", "llama", seed=5)
    with Evicting(path, BUDGET, CAPACITY, CONFIG) as ours:
        with pytest.raises(EvictionError, match="decode a token first"):
            ours.look(4, 10)
        ours.decode(prompt(320, 20))
        with pytest.raises(ConfigError, match="no rows"):
            ours.look(0, 10)
        assert ours.look(500, 20).max() > 0  # as many as are remembered
    with Evicting(path, BUDGET, CAPACITY, EvictConfig(window=16, method="random")) as ours:
        ours.decode(prompt(320, 20))
        with pytest.raises(ModelError, match="keeps no queries"):
            ours.look(4, 10)
