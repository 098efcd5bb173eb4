"""Functions of Python's standard library, to be found by their description. The sources are those of the Python that
runs; a document of this kind consists of them."""

from __future__ import annotations

import ast
import functools
import random
import re
import sysconfig
import textwrap
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from ..texts import MODULES
from .material import Material, Question

# Lines of a function, and characters of its description.
LINES_MAX = 24
_DESCRIPTION = range(30, 161)


@dataclass(frozen=True)
class Function:
    """name, source of the whole function; description: the first sentence of its documentation, without its name."""

    name: str
    description: str
    source: str


@functools.lru_cache(maxsize=1)
def library() -> tuple[Function, ...]:
    """Functions with a name and a description that no other one has, in the order of the modules. Raises ConfigError
    where this Python has no sources."""
    found: list[Function] = []
    for text in sources():
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found += _function(node, lines)
    names = [one.name for one in found]
    descriptions = [one.description for one in found]
    return tuple(one for one in found if names.count(one.name) == descriptions.count(one.description) == 1)


def sources() -> list[str]:
    """The modules of the standard library that are read on. Raises ConfigError."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = []
    for name in MODULES:
        try:
            found.append((folder / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
    if not found:
        raise ConfigError("this Python has no sources of its standard library; leave out the kind 'functions'")
    return found


def functions(rng: random.Random, n: int) -> Material:
    """n functions, each asked for by its description."""
    known = library()
    if n > len(known):
        raise ConfigError(f"there are {len(known)} functions and {n} questions; lower --questions")
    chosen = rng.sample(known, n)
    questions = [
        Question(
            "functions",
            f'Which function is described by "{one.description}"?',
            "It is the function `",
            f"{one.name}`",  # its end tells a name from one that it begins
            (one.source,),
        )
        for one in chosen
    ]
    return Material(tuple((one.source,) for one in chosen), tuple(questions))


def others(rng: random.Random) -> list[str]:
    """All functions in a random order: what stands between those that are asked for."""
    return [one.source for one in rng.sample(library(), len(library()))]


def _function(node: ast.FunctionDef, lines: list[str]) -> list[Function]:
    documentation = ast.get_docstring(node) or ""
    first = " ".join(re.split(r"\n\s*\n", documentation)[0].split())
    sentence = re.match(r".*?\.(?=\s|$)", first)
    end = node.end_lineno or node.lineno
    if sentence is None or end - node.lineno >= LINES_MAX:
        return []
    if len(sentence[0]) not in _DESCRIPTION or node.name.casefold() in sentence[0].casefold():
        return []
    return [Function(node.name, sentence[0], textwrap.dedent("\n".join(lines[node.lineno - 1 : end])).strip())]
