"""The kinds of memory that llama.cpp gives a model: which go with a cache that evicts, and what they do together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hybrid
import models
from evicting import Evicting
from places import PATHS
from restkv_local import native
from restkv_local.config import EvictConfig
from restkv_local.errors import ModelError
from stock import Stock

pytestmark = pytest.mark.usefixtures("native")
BUDGET, CAPACITY = 48, 96
CONFIG = EvictConfig(window=8)


def text(n: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(5, 300, n)]


def write(folder: Path, kind: str) -> Path:
    if kind == "lfm2":
        return hybrid.write_lfm2(folder / "model.gguf", seed=3)
    return models.write_random(folder / "model.gguf", kind, seed=3)


# lfm2: recurrent layers; gemma3: sliding windows
@pytest.mark.parametrize("kind", ["llama", "gemma3", "lfm2"])
def test_llama_decode_asks_for_evictions(kind: str, tmp_path: Path) -> None:
    """The first test to look at after a move to a newer llama.cpp. Evictions hang on one call: when no slot is free,
    llama_context::decode asks memory->init_update(optimize) and tries again."""
    tokens = text(3 * CAPACITY)
    with Evicting(write(tmp_path, kind), BUDGET, CAPACITY, CONFIG, n_batch=32) as engine:
        for i in range(0, len(tokens), 16):
            try:
                engine.decode(tokens[i : i + 16])
            except RuntimeError as error:
                pytest.fail(f"llama_decode did not ask for an eviction when no slot was free: {error}")
        stats = engine.stats
        assert stats.n_evictions >= 3 and stats.n_cells <= CAPACITY and stats.pos_next == len(tokens)


def test_a_memory_of_another_type_is_refused(tmp_path: Path) -> None:
    """MiniMax-M3 keeps a second cache in step with the first, cell by cell. No family is named for that."""
    path = hybrid.write_minimax_m3(tmp_path / "model.gguf", seed=1)
    with Stock(path):
        pass
    with pytest.raises(RuntimeError, match="cannot make a context"):
        Evicting(path, BUDGET, CAPACITY, CONFIG)
    assert b"a memory of a type that eviction does not know" in native.lib().restkv_last_error()
    # and nothing is left behind for the next context
    with Stock(path):
        pass

    from restkv_local import Engine

    with pytest.raises(ModelError, match="a memory of a type that eviction does not know"):
        Engine(str(path), 512, EvictConfig(budget=128, unverified=True))


def test_a_cut_that_is_refused_changes_no_part(tmp_path: Path) -> None:
    """Recurrent layers that keep states can go back a little; after an eviction the attention beside them cannot."""
    from llama_cpp import llama_cpp

    path, tokens = write(tmp_path, "lfm2"), text(CAPACITY + 40)
    with Evicting(path, BUDGET, CAPACITY, CONFIG, n_rs_seq=8) as engine:
        engine.decode(tokens[:CAPACITY])
        engine.decode(tokens[CAPACITY : CAPACITY + 2])
        assert engine.stats.n_evictions == 1 and engine.stats.pos_exact == CAPACITY
        memory = engine.call(llama_cpp.llama_get_memory)
        assert not llama_cpp.llama_memory_seq_rm(memory, 0, CAPACITY - 2, -1)
        assert b"have been evicted" in native.lib().restkv_last_error()
        assert llama_cpp.llama_memory_seq_pos_max(memory, 0) == CAPACITY + 1
        after = engine.decode(tokens[CAPACITY + 2 : CAPACITY + 20])
    with Evicting(path, BUDGET, CAPACITY, CONFIG, n_rs_seq=8) as engine:
        engine.decode(tokens[:CAPACITY])
        engine.decode(tokens[CAPACITY : CAPACITY + 2])
        np.testing.assert_array_equal(engine.decode(tokens[CAPACITY + 2 : CAPACITY + 20]), after)
    # a cut that both can make
    with Evicting(path, BUDGET, CAPACITY, CONFIG, n_rs_seq=8) as engine:
        engine.decode(tokens[:CAPACITY])
        engine.decode(tokens[CAPACITY : CAPACITY + 4])
        memory = engine.call(llama_cpp.llama_get_memory)
        assert llama_cpp.llama_memory_seq_rm(memory, 0, CAPACITY + 2, -1)
        assert llama_cpp.llama_memory_seq_pos_max(memory, 0) == CAPACITY + 1


SPLIT = """
import sys
from evicting import Evicting
from restkv_local import native
from restkv_local.config import EvictConfig

try:
    Evicting(sys.argv[1], 48, 96, EvictConfig(window=8), split_mode=3)
except RuntimeError as error:
    print(error, "|", native.lib().restkv_last_error().decode())
"""


def test_tensors_split_over_devices_are_refused(tmp_path: Path) -> None:
    """In a process of its own: with two devices this ended it."""
    env = os.environ | {"PYTHONPATH": PATHS}
    command = [sys.executable, "-c", SPLIT, str(write(tmp_path, "llama"))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "cannot make a context" in done.stdout and "use split_mode 1" in done.stdout
