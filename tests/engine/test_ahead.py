"""`plan`: what an engine would be, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines import TINY, load
from restkv_local.config import EvictConfig
from restkv_local.errors import ConfigError, LibraryError, ModelError

try:
    from restkv_local.plan import plan
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

ARCHIVED = TINY.with_(archive="ram")


@pytest.mark.parametrize(
    "settings",
    [
        {"evict": TINY},
        {"evict": ARCHIVED, "kv_type": ("q8_0", "f16")},
        {"evict": EvictConfig(method="full"), "n_batch": 64},
        {"evict": TINY.with_(allocation="pyramid", prefill="guided", budget=160, reserve=256), "n_ctx": 1024},
    ],
)
def test_it_is_the_plan_of_the_engine(model: Path, settings: dict[str, Any]) -> None:
    ahead = plan(model, **{"n_ctx": 512, **settings})
    with load(model, **settings) as engine:
        assert engine.plan == ahead
        loaded = engine.report()
    assert ahead.weights_bytes == sum(device.weights_bytes for device in loaded.memory)
    assert ahead.kv_bytes == loaded.kv_bytes


def test_it_is_plain_values(model: Path, tmp_path: Path) -> None:
    ahead = plan(model, 512, TINY.with_(archive=tmp_path / "rows"))
    found = json.loads(json.dumps(ahead.to_json()))
    assert found["model"] == str(model) and found["archive"]["path"] == str(tmp_path / "rows")
    assert found["shares"]["layers"] == [64, 64] and found["kv_types"] == ["f16", "f16"]
    assert found["limit"] == 128 and found["evicts"] is True and found["recalls"] is True
    assert found["cache_bytes"] == ahead.cache_bytes and "archive in file" in found["summary"]
    assert not list(tmp_path.iterdir()), "nothing is made"


def test_the_embedded_model_is_planned_without_a_path(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setenv("RESTKV_MODEL", str(model))
    assert plan(n_ctx=512, evict=TINY).model == model


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"model_path": "nowhere.gguf"}, ModelError, "there is no file nowhere.gguf"),
        ({"kv_type": "f64"}, ConfigError, "kv_type"),
        ({"n_ctx": -1}, ConfigError, "n_ctx"),
        ({"n_ctxx": 512}, ConfigError, "unknown setting 'n_ctxx'"),
        ({"n_gpu_layers": 1 << 40}, ConfigError, "n_gpu_layers"),
        ({"evict": EvictConfig(budget="1kB")}, ConfigError, "the smallest budget that works"),
        ({"evict": EvictConfig(method="full"), "n_ctx": 1 << 24}, ConfigError, "the largest n_ctx that fits"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(
    model: Path, settings: dict[str, Any], kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("restkv_local.plan.machine.free_memory", lambda: 1 << 30)
    with pytest.raises(kind, match=words):
        plan(**{"model_path": model, "evict": TINY, **settings})
