"""Saved states: of which model they are, what of them is checked, and what a refusal says."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import models
from restkv_local.config import EvictConfig
from restkv_local.errors import ConfigError, LibraryError, ModelError
from restkv_local.models.fingerprint import fingerprint

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

SMALL = EvictConfig(budget=96, reserve=160, use_wo=False)
TEXT = [*range(5, 255), *range(5, 105)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return models.write_random(folder / "model.gguf", "llama", seed=1)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    made = Engine(model, n_threads=1, n_ctx=1024, evict=SMALL)
    yield made
    made.close()


@pytest.fixture(scope="module")
def state(engine: Engine) -> Any:
    """After an eviction, and in the middle of the reserve."""
    engine.reset()
    engine.eval(TEXT)
    assert engine.report().n_evictions == 1
    return engine.save_state()


def tensor_at(path: Path, name: str) -> tuple[int, int]:
    """Offset and size of a tensor's bytes."""
    found = next(tensor for tensor in gguf.GGUFReader(str(path)).tensors if tensor.name == name)
    return int(found.data_offset), int(found.n_bytes)


def change(path: Path, copy_to: Path, name: str, at: Callable[[int], int]) -> Path:
    """A copy with one byte of a tensor changed. at: which, from the tensor's size."""
    shutil.copy(path, copy_to)
    offset, size = tensor_at(path, name)
    with copy_to.open("r+b") as file:
        file.seek(offset + at(size))
        byte = file.read(1)[0]
        file.seek(offset + at(size))
        file.write(bytes([byte ^ 1]))
    return copy_to


def refused(engine: Engine, state: Any, why: str) -> None:
    """The state is refused with that reason, and the engine is empty and works."""
    with pytest.raises(ConfigError, match=why):
        engine.load_state(state)
    assert engine.n_tokens == 0 and engine.cells == 0
    engine.eval(TEXT[:20])
    assert engine.n_tokens == engine.cells == 20


# ---- the fingerprint -----------------------------------------------------------------------------


def test_a_fingerprint_is_of_the_model_and_not_of_its_file(model: Path, folder: Path) -> None:
    found = fingerprint(model)
    assert found.startswith("1-") and len(found) == 34
    assert fingerprint(shutil.copy(model, folder / "renamed.gguf")) == found
    assert fingerprint(models.write_random(folder / "again.gguf", "llama", seed=1)) == found
    assert fingerprint(models.write_random(folder / "other.gguf", "llama", seed=2)) != found


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.0.attn_norm.weight", "blk.1.ffn_down.weight"])
@pytest.mark.parametrize("at", [lambda size: 0, lambda size: size - 1], ids=["first", "last"])
def test_one_byte_of_one_tensor(model: Path, tmp_path: Path, name: str, at: Callable[[int], int]) -> None:
    """A matrix is sampled from its first byte to its last."""
    assert fingerprint(change(model, tmp_path / "changed.gguf", name, at)) != fingerprint(model)


def test_a_small_tensor_counts_whole(model: Path, tmp_path: Path) -> None:
    name = "blk.1.attn_norm.weight"
    size = tensor_at(model, name)[1]
    places = range(0, size, 37)
    seen = {fingerprint(change(model, tmp_path / "changed.gguf", name, lambda _, at=at: at)) for at in places}
    assert len(seen) == len(places) and fingerprint(model) not in seen


def test_metadata_counts(model: Path, tmp_path: Path) -> None:
    """One value of each kind that differs: a number, a text and an entry of the vocabulary."""
    source = gguf.GGUFReader(str(model))
    seen = {fingerprint(models.write_copy(tmp_path / "same.gguf", model))}
    for key in ("llama.rope.freq_base", "general.name", "tokenizer.ggml.tokens", "tokenizer.ggml.scores"):
        value = source.fields[key].contents()
        if isinstance(value, list):
            value = [*value[:-1], value[0]]
        else:
            value = f"{value}!" if isinstance(value, str) else value * 2
        seen.add(fingerprint(models.write_copy(tmp_path / "changed.gguf", model, {key: value})))
    assert len(seen) == 5 and fingerprint(model) in seen


def test_a_split_model(model: Path, engine: Engine, state: Any, tmp_path: Path) -> None:
    """It has the fingerprint of the whole one, so states go from one to the other; what differs in any of its files
    makes it another model."""
    models.write_copy(tmp_path / "model.gguf", model, split=8)
    files = sorted(tmp_path.glob("model-*.gguf"))
    assert len(files) > 2
    assert fingerprint(files[0]) == fingerprint(model)
    made = Engine(files[0], n_threads=1, n_ctx=1024, evict=SMALL)
    made.load_state(state)
    assert made.n_tokens == len(TEXT)
    made.close()
    for i, file in enumerate(files):
        other = tmp_path / f"changed{i}"
        other.mkdir()
        for each in files:
            shutil.copy(each, other)
        name = gguf.GGUFReader(str(file)).tensors[-1].name
        change(file, other / file.name, name, lambda size: 0)
        assert fingerprint(other / files[0].name) != fingerprint(model), file.name
    made = Engine(other / files[0].name, n_threads=1, n_ctx=1024, evict=SMALL)
    refused(made, state, "saved with fingerprint 1-.*load it into an engine of the same model")
    made.close()
    with pytest.raises(ModelError, match="open the first of them"):
        fingerprint(shutil.copy(files[0], tmp_path / "alone.gguf"))
    files[-1].unlink()
    with pytest.raises(ModelError, match=files[-1].name):
        fingerprint(files[0])


def test_what_is_no_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "short.gguf").write_bytes(model.read_bytes()[:-1])
    for name in ("text", "short", "nothing"):
        with pytest.raises(ModelError, match=f"{name}.gguf"):
            fingerprint(tmp_path / f"{name}.gguf")


# ---- states of another model ---------------------------------------------------------------------


def test_a_state_of_a_fine_tune_is_refused(model: Path, state: Any, tmp_path: Path) -> None:
    """A model of the same size, types and name, one byte of one matrix apart."""
    tuned = change(model, tmp_path / "model.gguf", "blk.1.attn_v.weight", lambda size: 0)
    made = Engine(tuned, n_threads=1, n_ctx=1024, evict=SMALL)
    assert made._model.desc() == state.made_by["model"]
    refused(made, state, "saved with fingerprint 1-.*load it into an engine of the same model")
    made.close()


def test_a_state_with_a_lora_is_refused_without_it(model: Path, engine: Engine, tmp_path: Path) -> None:
    lora = models.write_lora(tmp_path / "lora.gguf", model, "blk.0.attn_k.weight", seed=3)
    tuned = Engine(model, n_threads=1, n_ctx=1024, evict=SMALL, lora_path=str(lora))
    tuned.eval(TEXT)
    saved = tuned.save_state()
    refused(engine, saved, "saved with lora .*and this engine has None")
    weaker = Engine(model, n_threads=1, n_ctx=1024, evict=SMALL, lora_path=str(lora), lora_scale=0.5)
    refused(weaker, saved, "saved with lora ")
    tuned.reset()
    tuned.load_state(saved)
    assert tuned.n_tokens == len(TEXT)
    weaker.close()
    tuned.close()


def test_keys_that_are_turned_otherwise(model: Path, state: Any, tmp_path: Path) -> None:
    made = Engine(model, n_threads=1, n_ctx=1024, evict=SMALL, rope_freq_base=5e4)
    refused(made, state, "saved with rope ")
    made.close()
    phi = models.write_random(tmp_path / "phi.gguf", "phi3", rope="long", n_ctx_train=4096)
    short = Engine(phi, n_threads=1, n_ctx=1024, evict=SMALL)
    long = Engine(phi, n_threads=1, n_ctx=2048, evict=SMALL)
    short.eval(TEXT)
    refused(long, short.save_state(), "saved with long rope factors False and this engine has True")
    short.close()
    long.close()


# ---- damaged states ------------------------------------------------------------------------------


def test_the_reason_of_the_cache_is_passed_on(engine: Engine, state: Any) -> None:
    """What native code says, whatever else has failed before."""
    blob = bytearray(state.llama_state)
    at = blob.find(b"RSTKVST")
    assert at > 0
    window = bytearray(blob)
    window[at + 16 : at + 20] = (20).to_bytes(4, "little")
    refused(engine, dataclasses.replace(state, llama_state=window), "its window is 20 and this cache's is 32")
    ring = bytearray(blob)
    ring[at + 80 : at + 84] = (0x7FFFFFE0).to_bytes(4, "little")
    refused(engine, dataclasses.replace(state, llama_state=ring), "its queries are out of order")
    refused(engine, dataclasses.replace(state, llama_state=blob[:-100]), "is damaged or of another .*end of buffer")
    refused(engine, dataclasses.replace(state, llama_state=b""), "is damaged or of another cache")
    arch = bytearray(blob)
    arch[arch.find(b"llama")] ^= 1
    refused(engine, dataclasses.replace(state, llama_state=arch), "wrong model arch")
    engine.load_state(state)
    assert engine.n_tokens == len(TEXT)


def test_tokens_and_cells_must_agree(engine: Engine, state: Any) -> None:
    longer = copy.copy(state)
    longer.n_tokens, longer.input_ids = len(TEXT) + 1, np.append(state.input_ids, 5)
    refused(engine, longer, f"has {len(TEXT) + 1} tokens, and its cells end at position {len(TEXT)}")
    for change_of in (
        {"n_tokens": len(TEXT) + 1},
        {"n_tokens": -1},
        {"input_ids": state.input_ids.astype(np.float32)},
        {"input_ids": state.input_ids + 1_000_000},
        {"logits": np.zeros(3, np.float32)},
    ):
        refused(engine, dataclasses.replace(state, **change_of), "its tokens do not fit the model")
