"""Archive and recall in the library against the reference engine: same chosen cells, same logits, same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_parity import check_logits, check_same, prompt

import devices
import models
from evicting import Evicting
from restkv_local.config import EvictConfig, Stages
from restkv_local.reference.model import ReferenceEngine
from stock import GGML_TYPES, Stock

pytestmark = pytest.mark.usefixtures("library")

BUDGET, CAPACITY, CHUNK = 96, 192, 64
CONFIG = EvictConfig(window=16)


@pytest.fixture(scope="module")
def llama(folder: Path) -> Path:
    return models.write_random(folder / "llama.gguf", "llama", seed=5, n_head=6, n_head_kv=3)


class Both:
    """The library and the reference, side by side; after every step they hold the same."""

    def __init__(self, path: Path, config: EvictConfig = CONFIG, *, archive: str | Path = "ram", kv: str = "f16",
                 archive_type: str = "auto", device: str = "CPU", stages: Stages = "auto",
                 n_threads: int = 1) -> None:  # fmt: skip
        number = -1 if archive_type == "auto" else GGML_TYPES[archive_type]
        self.reference = ReferenceEngine(path, BUDGET, CAPACITY, config, type_k=kv, type_v=kv, archive=True,
                                         archive_type=archive_type)  # fmt: skip
        config = config.with_(stages=stages)
        self.native = Evicting(path, BUDGET, CAPACITY, config, type_k=kv, type_v=kv, archive=archive, n_ctx=1024,
                               archive_types=(number, number), device=device, n_threads=n_threads)  # fmt: skip

    def __enter__(self) -> Both:
        return self

    def __exit__(self, *exc: object) -> None:
        self.native.__exit__()

    def check(self) -> float:
        assert self.native.stats.pos_exact == self.reference.pos_exact
        assert self.native.stats.pos_next == self.reference.n_tokens
        assert self.native.archive.n_rows == self.reference.archived
        return check_same(self.native, self.reference)

    def read(self, tokens: Sequence[int]) -> None:
        """With recall, a chunk at a time."""
        for i in range(0, len(tokens), CHUNK):
            chunk = tokens[i : i + CHUNK]
            ours, theirs = self.native.read(chunk), self.reference.decode(chunk, recall=True)
            check_logits(ours, theirs, self.check())

    def decode(self, tokens: Sequence[int]) -> np.ndarray:
        ours, theirs = self.native.decode(tokens), self.reference.decode(tokens)
        check_logits(ours, theirs, self.check())
        return ours

    def answer(self, token: int, n: int = 12) -> None:
        for _ in range(n):
            token = int(self.decode([token])[-1].argmax())

    def recall(self, n_guide: int = 0) -> None:
        assert self.native.recall(n_guide) == self.reference.recall(n_guide) is True
        self.check()

    def cut(self, position: int) -> None:
        self.reference.cut(position)
        assert self.native.cut(position)
        self.check()


@pytest.mark.parametrize("family", models.FAMILIES)
def test_every_family(family: str, folder: Path) -> None:
    path = models.write_random(folder / f"{family}.gguf", family, seed=3)
    with Both(path) as both:
        both.read(prompt(320, 450))
        both.decode(prompt(320, 20, seed=9))
        both.recall(20)
        both.read(prompt(320, 20, seed=9))
        both.answer(11)
        both.recall()
        both.answer(12)


@pytest.mark.parametrize("archive", ["ram", "file"])
@pytest.mark.parametrize("kv", ["bf16", "q8_0", "q4_0"])
def test_cache_types(kv: str, archive: str, folder: Path, tmp_path: Path) -> None:
    path = models.write_random(folder / f"kv-{kv}.gguf", "llama", seed=7)
    with Both(path, kv=kv, archive="ram" if archive == "ram" else tmp_path / "rows.archive") as both:
        both.read(prompt(320, 400))
        both.answer(11)


@pytest.mark.parametrize(("kv", "archive_type"), [("f16", "q8_0"), ("q8_0", "q4_0")])
def test_an_archive_of_another_type(kv: str, archive_type: str, folder: Path) -> None:
    path = models.write_random(folder / f"type-{kv}.gguf", "llama", seed=8)
    with Both(path, kv=kv, archive_type=archive_type) as both:
        both.read(prompt(320, 400))
        both.answer(11)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_threads_and_places_change_nothing(n_threads: int, llama: Path, tmp_path: Path) -> None:
    tokens = prompt(320, 500)
    found = []
    for archive, n in (("ram", 1), (tmp_path / "rows.archive", n_threads)):
        with Evicting(llama, BUDGET, CAPACITY, CONFIG, archive=archive, n_ctx=1024, n_threads=n) as native:
            logits = [native.read(tokens[i : i + CHUNK]) for i in range(0, len(tokens), CHUNK)]
            native.recall()
            found.append((np.concatenate(logits), [native.kept(1, h) for h in range(3)]))
    assert np.array_equal(found[0][0], found[1][0])
    assert all(np.array_equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_within_the_budget_nothing_changes(llama: Path) -> None:
    tokens = prompt(320, 150)
    with Evicting(llama, BUDGET, CAPACITY, CONFIG, archive="ram") as ours, Stock(llama) as stock:
        assert np.array_equal(ours.read(tokens), stock.decode(tokens))
        assert not ours.recall()  # all of it is there
        assert np.array_equal(ours.decode([7]), stock.decode([7]))
        assert ours.archive.n_rows == ours.archive.n_recalls == 0


@pytest.mark.parametrize("place", ["ram", "file"])
def test_cut_anywhere(place: str, llama: Path, tmp_path: Path) -> None:
    with Both(llama, archive="ram" if place == "ram" else tmp_path / "rows.archive") as both:
        both.read(prompt(320, 512))
        both.cut(400)  # behind the budget, before the last eviction
        both.read(prompt(320, 80, seed=4))
        both.answer(11, 4)
        both.cut(320)
        both.decode(prompt(320, 20, seed=9))
        both.recall(20)
        both.answer(11, 4)
        both.cut(BUDGET)  # as if nothing had been evicted
        assert both.native.stats.pos_exact == 0
        both.cut(50)  # rows of other tokens must not stay archived
        both.read(prompt(320, 250, seed=5))
        both.cut(17)
        both.read(prompt(320, 200, seed=6))
        both.answer(11, 4)


def test_a_cut_and_what_follows_equal_the_shorter_text(llama: Path) -> None:
    text, question, n = prompt(320, 512), prompt(320, 20, seed=9), 5 * CHUNK
    found = []
    for cut in (True, False):
        with Evicting(llama, BUDGET, CAPACITY, CONFIG, archive="ram", n_ctx=1024) as native:
            for i in range(0, len(text) if cut else n, CHUNK):
                native.read(text[i : i + CHUNK])
            assert native.cut(n) if cut else native.drop_tail()
            assert native.stats.pos_exact == native.archive.n_rows == n
            found.append([native.read(question), native.decode([11]), native.kept(1, 2)])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_what_is_dropped_comes_back_bit_for_bit(llama: Path) -> None:
    text, question = prompt(320, 180), prompt(320, 16, seed=9)
    with Evicting(llama, BUDGET, CAPACITY, CONFIG, archive="ram", n_ctx=1024) as ours, Stock(llama) as stock:
        ours.decode(text)
        assert ours.drop_tail()
        ours.decode(question)
        assert ours.recall(len(question))
        gone = [np.setdiff1d(np.arange(BUDGET), ours.kept(layer, h)) for layer in range(2) for h in range(3)]
        assert all(len(positions) > BUDGET // 4 for positions in gone)
        assert ours.cut(BUDGET)  # the first positions come back, as if nothing had been evicted
        assert ours.stats.pos_exact == 0
        assert np.array_equal(ours.decode(text[BUDGET:]), stock.decode(text)[BUDGET:])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt-oss"])
@pytest.mark.parametrize("device", devices.found())
def test_on_every_device(device: str, family: str, folder: Path, tmp_path: Path) -> None:
    """The same rows and the same choice where the cells lie on a device."""
    path = models.write_random(folder / f"device-{family}.gguf", family, seed=3)
    with Both(path, device=device, archive=tmp_path / "rows.archive", n_threads=2) as both:
        both.read(prompt(320, 400))
        both.decode(prompt(320, 20, seed=9))
        both.recall(20)
        both.answer(11, 4)
        if not any(both.reference.model.spec.swa):
            both.cut(250)
            both.read(prompt(320, 100, seed=4))
