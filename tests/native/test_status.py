"""The last failure of the library: a status beside a sentence, of the last call and of no other."""

from __future__ import annotations

import ctypes as C
from pathlib import Path
from typing import Any

import pytest

from restkv_local import native
from restkv_local.config import EvictConfig
from restkv_local.errors import ConfigError, EvictionError, LibraryError, ModelError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

import models
from restkv_local.engine import construct
from restkv_local.engine import engine as made_by
from restkv_local.engine.facts import memory_of
from restkv_local.native.binding import LIBRARY


def fail() -> None:
    """Make a call that fails: its arrays are missing."""
    assert LIBRARY.restkv_select(None, 0, 0, None) == native.INVALID


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_random(tmp_path_factory.mktemp("status") / "model.gguf", "llama", seed=1)


def test_a_call_forgets_the_failure_of_the_one_before() -> None:
    fail()
    failed = native.failure()
    assert failed is not None and failed.status == native.INVALID and "restkv_select" in failed.reason
    assert LIBRARY.restkv_get_device(0, C.byref(native.Device())) == native.OK
    assert native.failure() is None and LIBRARY.restkv_last_error() == b""
    fail()
    native.forget_failure()
    assert native.failure() is None and LIBRARY.restkv_last_error() == b""


@pytest.mark.parametrize("method", ["snapkv", "full"])
def test_what_succeeds_leaves_no_failure(model: Path, method: Any) -> None:
    """An eviction, and what is read of a context, with a cache that evicts and without one."""
    evict = EvictConfig(method="full") if method == "full" else EvictConfig(budget=96, reserve=160, method=method)
    made = Engine(model, n_threads=1, n_ctx=1024, evict=evict)
    try:
        made.eval(list(range(5, 255)) * 2)
        assert native.failure() is None, "an eviction that went well"
        assert memory_of(made._ctx.ctx)
        assert native.failure() is None, "memory of a context"
        if method == "full":
            return
        assert made.report().n_evictions == 2
        with pytest.raises(ConfigError, match="layer 0 has no evicting cache with a KV head 9"):
            made.kept(0, 9)
        assert native.failure() is not None
        assert len(made.kept(0, 1)) == made.cells and native.failure() is None
    finally:
        made.close()


@pytest.mark.parametrize("status", [native.INVALID, None])
def test_a_batch_without_a_cell(model: Path, status: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama_decode found no room: an eviction failed, or the batch is too large; never what failed before."""
    made = Engine(model, n_threads=1, n_ctx=1024, evict=EvictConfig(budget=96, reserve=160))

    def decode(*_: Any) -> int:
        if status is not None:
            fail()
        return 1

    try:
        monkeypatch.setattr(made_by.c, "llama_decode", decode)
        fail()
        expected, why = (
            (EvictionError, "2 tokens do not fit the 256 cells that are free")
            if status is None
            else (ConfigError, "the eviction failed: restkv_select")
        )
        with pytest.raises(expected, match=why):
            made.eval([5, 6])
    finally:
        monkeypatch.undo()
        made.close()


@pytest.mark.parametrize("status", [native.INVALID, None])
def test_a_context_that_cannot_be_made(model: Path, status: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The type of the error goes by the status of this context's failure; without one it is none of the library's."""

    def make(**_: Any) -> None:
        if status is not None:
            fail()
        raise ValueError("Failed to create llama_context")

    monkeypatch.setattr(construct, "_Context", make)
    fail()
    expected = EvictionError if status is None else ConfigError
    with pytest.raises(expected, match="the cache cannot be made") as caught:
        Engine(model, n_threads=1, n_ctx=1024, evict=EvictConfig(method="full"))
    assert ("restkv_select" in str(caught.value)) == (status is not None)


def test_every_status_has_a_type() -> None:
    types = {
        native.INVALID: ConfigError,
        native.UNSUPPORTED: ModelError,
        native.IO: ModelError,
        native.NO_MEMORY: EvictionError,
        native.GONE: EvictionError,
        native.STATE: ConfigError,
    }
    assert {status: native.error_type(status) for status in types} == types
