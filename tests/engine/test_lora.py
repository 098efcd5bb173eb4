"""LoRA: files that are none, and one that changes what is said."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from engines import TINY, load
from restkv_local.errors import LibraryError, ModelError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)


def write_lora(
    path: Path, arch: str = "llama", kind: str = "lora", tensor: str = "blk.0.attn_q.weight", n: int = 256
) -> Path:
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", 1.0)
    writer.add_tensor(f"{tensor}.lora_a", np.full((4, n), 0.1, dtype=np.float32))
    writer.add_tensor(f"{tensor}.lora_b", np.full((256, 4), 0.1, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_that_are_no_lora(folder: Path, spm: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    text = folder / "lora.txt"
    text.write_text("GGUF, but not really")
    (folder / "lora.json").write_text("{}")
    cut = folder / "cut.gguf"
    cut.write_bytes(write_lora(folder / "whole.gguf").read_bytes()[:150])
    cases = {
        folder / "nowhere.gguf": "there is no file",
        folder: "cannot be read",
        folder / "lora.json": "no GGUF file",
        text: "damaged",
        cut: "damaged",
        Path(spm.model_path): "no LoRA",
        write_lora(folder / "control.gguf", kind="ia3"): "no LoRA",
        write_lora(folder / "qwen.gguf", arch="qwen2"): "'qwen2' models",
    }
    from restkv_local.engine import core

    with monkeypatch.context() as patch:
        patch.setattr(core, "construct", lambda *_args: pytest.fail("the model is loaded"))
        for path, reason in cases.items():
            with pytest.raises(ModelError, match=reason):
                load(Path(spm.model_path), lora_path=str(path), evict=TINY.with_(use_wo=False))
    for path in (write_lora(folder / "name.gguf", tensor="blk.9.x.weight"), write_lora(folder / "shape.gguf", n=64)):
        with pytest.raises(ModelError, match="cannot be used: .*wrong base model"):
            load(Path(spm.model_path), lora_path=str(path), evict=TINY.with_(use_wo=False))


def test_a_lora_changes_what_is_said(folder: Path, spm: Engine) -> None:
    path = write_lora(folder / "good.gguf")
    engine = load(Path(spm.model_path), lora_path=str(path), evict=TINY.with_(use_wo=False))
    rows = []
    for one in (engine, spm):
        one.reset()
        one.eval(one.tokenize(b"abc"))
        rows.append(np.asarray(one.scores[-1, :]))
    assert not np.array_equal(rows[0], rows[1])
    engine.close()
