"""What many tests of the native side share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stock import llama_module


@pytest.fixture(scope="module")
def library() -> None:
    """Skips where there is no library."""
    llama_module()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For models that several tests of a file use."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small products gain nothing from torch's threads, spinning ones slow a busy machine down, and the order of their
    sums must not change."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
