"""How the reference scores cells, by method: a file of its name for each, which ends with its row."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ...plan.methods import TRAITS
from .rows import Attending, Queryless

REFERENCES: dict[str, Queryless | Attending] = {
    name: import_module(f".{name}", __name__).REFERENCE for name in TRAITS
}


def translate(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters under the names of `ScoreParams`, of those under which published code knows methods and options.

    Raises ConfigError for an unknown value of a published option.
    """
    method = params.get("method")
    for name, row in REFERENCES.items():
        if isinstance(method, str) and method in row.published:
            return row.published[method](params) | {"method": name}
    return dict(params)
