"""Models with random weights in published shapes: sizes, blocks, and files that llama.cpp runs."""

from __future__ import annotations

import math
import shutil
from collections import namedtuple
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from restkv_local.cli.bench.main import main
from restkv_local.errors import ConfigError
from restkv_local.models import random_gguf
from restkv_local.models.shapes import (
    BLOCKS,
    SHAPES,
    bytes_per_cell,
    can_have,
    data_bytes,
    n_weights,
    rope_factors,
    tensors,
)

# As the model cards count them, in billions.
PUBLISHED = {
    "llama-3.1-8b": 8.03,
    "qwen2.5-7b": 7.62,
    "mistral-7b-v0.3": 7.25,
    "gemma-7b": 8.54,
    "llama-2-7b": 6.74,
    "llama-3-70b": 70.55,
    "smollm2-135m": 0.135,
}
# Small enough to write with one layer in seconds.
LOADED = ("llama-2-7b", "qwen2.5-7b", "tiny")


# ---- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_as_many_as_published(name: str) -> None:
    shape = SHAPES[name]
    assert n_weights(shape, shape.n_layer) / 1e9 == pytest.approx(PUBLISHED[name], abs=0.006)
    assert set(SHAPES) == {*PUBLISHED, "tiny"}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", BLOCKS)
def test_bytes_of_every_shape(name: str, kind: str) -> None:
    shape = SHAPES[name]
    values, size = BLOCKS[kind]
    everything = list(tensors(shape, shape.n_layer))
    if not can_have(shape, kind):
        assert (name, kind) == ("smollm2-135m", "q4_k"), "576 values are no whole blocks"
        return
    assert len({tensor.name for tensor in everything}) == len(everything)
    for tensor in everything:
        if len(tensor.size) == 2:
            assert tensor.size[1] % values == 0 and tensor.size[0] % len(tensor.sharpness) == 0
    matrices = sum(math.prod(t.size) for t in everything if len(t.size) == 2)
    vectors = sum(t.size[0] for t in everything if len(t.size) == 1)
    exact = matrices // values * size + 4 * vectors
    assert exact <= data_bytes(shape, shape.n_layer, kind) < exact + 32 * len(everything)
    one = data_bytes(shape, 1, kind)
    assert (data_bytes(shape, shape.n_layer, kind) - one) % (shape.n_layer - 1) == 0  # layers are alike


def test_cells_of_every_shape() -> None:
    # 2 bytes x (K and V) x layers x KV heads x head size
    assert bytes_per_cell(SHAPES["llama-3.1-8b"], 32) == 131072
    assert bytes_per_cell(SHAPES["qwen2.5-7b"], 28) == 57344
    assert bytes_per_cell(SHAPES["llama-2-7b"], 32) == 524288


def test_scaled_rotation() -> None:
    factors = np.array(rope_factors(SHAPES["llama-3.1-8b"]))
    waves = 2 * np.pi * 5e5 ** (np.arange(64) / 64)
    assert (factors[waves < 8192 / 4] == 1).all() and (factors[waves > 8192] == 8).all()
    middle = factors[(waves > 8192 / 4) & (waves < 8192)]
    assert len(middle) and (np.diff(middle) > 0).all() and 1 < middle[0] and middle[-1] < 8


# ---- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLOCKS)
def test_weights_have_the_scales_asked_for(kind: str, tmp_path: Path) -> None:
    path = random_gguf.write(tmp_path / "model.gguf", "tiny", kind=kind, seed=3)
    shape = SHAPES["tiny"]
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    asked = {tensor.name: tensor for tensor in tensors(shape, shape.n_layer)}
    assert list(read) == list(asked)
    for name, tensor in asked.items():
        assert [int(n) for n in reversed(read[name].shape)] == list(tensor.size)
        values = gguf.quants.dequantize(read[name].data, read[name].tensor_type)
        assert np.isfinite(values).all()
        if len(tensor.size) == 1:
            assert read[name].tensor_type == gguf.GGMLQuantizationType.F32
            continue
        assert read[name].tensor_type.name == kind.upper()
        parts = values.reshape(len(tensor.sharpness), -1)
        wanted = np.array(tensor.sharpness) * tensor.std
        np.testing.assert_allclose(parts.std(axis=1), wanted, rtol=0.1)
        assert (abs(parts.mean(axis=1)) < 0.05 * wanted).all()
        assert len(np.unique(values, axis=0)) == len(values)  # no row twice
        # no scale that a device could take for 0
        d = read[name].data.reshape(-1, BLOCKS[kind][1])[:, :2].copy().view("<f2")
        assert (np.abs(d) >= np.finfo(np.float16).tiny).all()


def test_same_seed_same_file(tmp_path: Path) -> None:
    files = [random_gguf.write(tmp_path / f"{i}.gguf", "tiny", seed=seed) for i, seed in enumerate((1, 1, 2))]
    one, same, other = (path.read_bytes() for path in files)
    assert one == same and len(one) == len(other) and one != other


@pytest.mark.parametrize("name", LOADED)
@pytest.mark.usefixtures("native")
def test_llama_cpp_runs_it(name: str, tmp_path: Path) -> None:
    from restkv_local import Engine, EvictConfig

    kind = "q4_k" if name == "qwen2.5-7b" else "q4_0"
    seen: list[tuple[int, int]] = []
    path = random_gguf.write(
        tmp_path / "model.gguf", name, n_layer=1, kind=kind, on_progress=lambda *now: seen.append(now)
    )
    shape = SHAPES[name]
    assert seen[0] == (0, data_bytes(shape, 1, kind)) and seen[-1] == (seen[0][1], seen[0][1])
    estimate = random_gguf.file_bytes(shape, 1, kind)
    assert estimate - 2**21 < path.stat().st_size <= estimate
    engine = Engine(str(path), 512, EvictConfig(budget=64, reserve=64, window=16), n_batch=64)
    try:
        engine.eval(engine.tokenize(b"the river carried the old lantern to the market. " * 6))
        before = engine._last_logits()
        engine.eval([int(before.argmax())])
        after = engine._last_logits()
        report = engine.report()
        assert report.n_evictions >= 1 and report.kv_bytes == 128 * bytes_per_cell(shape, 1)
    finally:
        engine.close()
    for logits in (before, after):
        assert logits.shape == (shape.n_vocab,) and np.isfinite(logits).all()
        assert 0.5 < logits.std() < 10  # neither flat nor one token alone
    assert not np.array_equal(before, after)


def test_full_disk_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**9))
    with pytest.raises(ConfigError, match=r"takes 4\.\d GB and 1\.0 GB are free in .*fewer --layers"):
        random_gguf.write(tmp_path / "model.gguf", "llama-3.1-8b")
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_cut_short_does_not_stay(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        random_gguf.write(tmp_path / "model.gguf", "tiny", on_progress=stop)
    assert not list(tmp_path.iterdir())


# ---- the command -------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["shapes", *arguments])
    return done.exit_code, done.output


def test_list() -> None:
    code, text = run("--list")
    lines = text.splitlines()
    assert code == 0 and [line.split()[0] for line in lines[1:]] == list(SHAPES)
    assert "8.03G" in text and "4.5 GB" in text


def test_command_writes_and_refuses(tmp_path: Path) -> None:
    code, text = run("tiny", "--layers", "1", "--type", "q4_k", "--out", str(tmp_path))
    path = tmp_path / "tiny-1-layers.Q4_K.gguf"
    assert code == 0 and path.is_file() and "tiny, 1 of 2 layers, q4_k" in text
    for words, said in (
        (["tiny", "--layers", "1", "--type", "q4_k", "--out", str(tmp_path)], "--force writes over it"),
        (["smollm2-135m", "--type", "q4_k", "--out", str(tmp_path)], "no whole blocks of 256 values: use type 'q4_0'"),
        (["tiny", "--layers", "9"], "tiny has 2 layers; --layers must be from 1 to 2"),
        (["tiny", "--out", str(tmp_path / "none" / "x.gguf")], "there is no folder"),
    ):
        code, text = run(*words)
        assert code == 1 and said in text, text
    code, text = run("llama-9b")
    assert code == 2 and "llama-3.1-8b" in text
