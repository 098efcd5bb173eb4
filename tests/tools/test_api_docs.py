"""The API reference: all that is public is there, with words, and docstrings become the right Markdown."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

import pytest

import restkv_local
from lib.docs import api
from lib.setup.source import ROOT
from restkv_local.errors import LibraryError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
OBJECTS = [name for names in api.SECTIONS.values() for name in names]


def found(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"restkv_local.{module}"), attribute)


def test_everything_public_is_there() -> None:
    names = [name for name in restkv_local.__all__ if name != "__version__"]
    assert names == sorted(names)
    assert not [name for name in names if f"### {name}\n" not in PAGE and f"| `{name}` |" not in PAGE]


@pytest.mark.parametrize("name", OBJECTS)
def test_everything_that_is_there_is_told(name: str) -> None:
    of = found(name)
    parts = [of, *(value for _, value in api.members(of))] if inspect.isclass(of) else [of]
    # dataclasses that nobody described have a docstring made of their signature
    assert not [part for part in parts if not (inspect.getdoc(part) or "(").partition("(")[0].strip()]


def test_members_of_an_engine_are_ours_and_in_order() -> None:
    names = [name for name, _ in api.members(Engine)]
    assert names[:2] == ["eval", "read_logits"] and names[-1] == "scores"
    assert {"create_chat_completion", "cells", "close", "report"} < set(names)
    assert not {"create_embedding", "n_vocab", "__enter__"} & set(names), "those of llama_cpp are told there"


@dataclass(frozen=True)
class Sample:
    """A sample. low: not here.

    low, high: bounds, low first; high may be
        infinite. tell(share): called with a share. Raises nothing.

    rest: of it. `low` again: no, since nothing of that name begins the sentence.
    """

    low: int
    tell: str
    high: list[int]
    rest: float = 1.0


def test_docstrings_become_lists() -> None:
    assert api._text(Sample) == (
        "A sample. low: not here.\n\n"
        "- `low`, `high`: bounds, low first; high may be infinite.\n"
        "- `tell(share)`: called with a share.\n\n"
        "Raises nothing.\n\n"
        "- `rest`: of it. `low` again: no, since nothing of that name begins the sentence."
    )


def test_signatures_are_those_of_the_code() -> None:
    def one(a: int, *rest: str, b: str = "x", **more: float) -> list[int]:
        return []

    def other(a: int, *, b: str = "x") -> None:
        return None

    async def third(self: object, c: bytes) -> None:
        return None

    def code(name: str, of: Any, **options: bool) -> str:
        return api._code(name, of, **options).splitlines()[1]

    assert code("one", one) == "one(a: int, *rest: str, b: str = 'x', **more: float) -> list[int]"
    assert code("other", other) == "other(a: int, *, b: str = 'x') -> None"
    assert code("third", third, drop_self=True) == "async def third(c: bytes) -> None"
