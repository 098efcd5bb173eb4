"""A method is one file of the library, one of the reference and one row of TRAITS: all three agree, and nothing else
knows it by its name."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from restkv_local.config import METHODS
from restkv_local.plan.methods import TRAITS, Method
from restkv_local.reference.methods import REFERENCES, translate
from restkv_local.reference.methods.rows import Attending

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native" / "methods"
REFERENCE = ROOT / "restkv_local" / "reference" / "methods"
# Who else may name a method: the default, what a check runs, and a call that needs some method that scores nothing.
NAMED = {
    "restkv_local/config.py": {"restkv"},
    "restkv_local/check/cases.py": {"restkv", "snapkv"},
    "native/api/device.cpp": {"fifo"},
}
QUOTED = re.compile(rf"""["'`]({"|".join(TRAITS)})["'`]""")


def native_row(method: str) -> str:
    """The row at the end of the method's file, without comments of lines."""
    text = re.sub(r"//.*", "", (NATIVE / f"{method}.cpp").read_text())
    found = re.search(rf"extern const restkv_method restkv_method_{method} = {{(.*?)}};", text, re.S)
    assert found is not None
    return found[1]


def test_the_type_names_every_row() -> None:
    assert (*TRAITS, "full") == get_args(Method) == METHODS


def test_every_method_has_its_files_and_no_others() -> None:
    listed = re.findall(r"^ +ROW\((\w+)\)", (NATIVE / "methods.cpp").read_text(), re.M)
    assert listed == list(TRAITS) == list(REFERENCES)
    assert {path.stem for path in NATIVE.glob("*.cpp")} == {*TRAITS, "attention", "methods"}
    assert {path.stem for path in REFERENCE.glob("*.py")} == {*TRAITS, "attention", "rows", "__init__"}


@pytest.mark.parametrize("method", TRAITS)
def test_rows_agree(method: str) -> None:
    row, own = native_row(method), TRAITS[method]
    assert re.match(rf'\s*"{method}",\s*"[a-z]', row)
    flags = {name: value == "true" for name, value in re.findall(r"/\*(\w+) =\*/(true|false)", row)}
    assert flags["uses_queries"] == (own.queries != "none") == isinstance(REFERENCES[method], Attending)
    assert (flags["uses_wo"], flags["pools"]) == (own.wo, own.pools)
    assert flags.get("per_layer", False) == own.per_layer
    assert flags.get("accumulates", False) == own.votes
    assert (re.findall(r"RESTKV_BUDGETS_(\w+)", row) or ["ANY"]) == [own.budgets.upper()]
    assert own.pools or (own.pooling, own.kernel) == ("none", 1)
    assert own.source
    # how the rows of the window weigh, in the library and in the reference
    weighs = "row_weights" in re.sub(r"/\*row_weights =\*/nullptr", "", row)
    if own.queries == "window":
        reference = REFERENCES[method]
        assert isinstance(reference, Attending) and weighs == (reference.row_weights is not None)


def test_every_method_has_its_section_in_the_docs() -> None:
    assert set(METHODS) <= set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "methods.md").read_text(), re.M))


def test_published_names_are_no_methods_and_nobody_shares_one() -> None:
    published = [name for row in REFERENCES.values() for name in row.published]
    assert len(set(published)) == len(published) and not set(published) & set(METHODS)
    given = {"method": "kvpress_TOVAPress", "keep": 9}
    assert translate(given) == {"method": "tova", "budget": 9} and given["keep"] == 9


def strings(path: Path) -> list[str]:
    """All strings of a file but docstrings, which explain."""
    if path.suffix != ".py":
        return [f'"{text}"' for text in re.findall(r'"([^"\n]*)"', re.sub(r"//.*", "", path.read_text()))]
    tree = ast.parse(path.read_text())
    explaining = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        f'"{node.value}"'
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in explaining
    ]


def test_nothing_else_knows_a_method_by_its_name() -> None:
    homes = (REFERENCE, NATIVE, ROOT / "native" / "tests", ROOT / "restkv_local" / "plan" / "methods.py")
    found = {}
    for path in [*ROOT.glob("restkv_local/**/*.py"), *ROOT.glob("native/**/*.cpp"), *ROOT.glob("native/**/*.h")]:
        if not any(path == home or home in path.parents for home in homes):
            named = {name for text in strings(path) for name in QUOTED.findall(text)}
            found |= {path.relative_to(ROOT).as_posix(): named} if named else {}
    assert found == NAMED
