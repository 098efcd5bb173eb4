"""Methods, settings and bounds, as blocks of the docs: read from the code that they belong to."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields
from typing import Any

from ..setup.source import ROOT

# What an eviction of n cells computes, by whose queries a method looks at.
_TIMES = {
    "window": "attention of the window over n cells",
    "last": "attention of one query over n cells",
    "all": "attention of every token of the text, once: about what the model's own attention scores cost",
    "none": "nothing that counts",
}
# What lies beside K and V, by whose queries a method looks at.
_MEMORY = {
    "window": "queries of the window",
    "last": "one query",
    "all": "up to {most} queries; a float per KV head and cell",
    "none": "nothing",
}
_TABLE = re.compile(r"^ +ROW\((\w+)\)", re.MULTILINE)
_METHOD = re.compile(
    r"const restkv_method restkv_method_\w+ = \{\s*"
    r'"(?P<name>[^"]+)",\s*"(?P<summary>[^"]+)",\s*'
    r"/\*uses_queries =\*/(?P<queries>true|false),\s*/\*uses_wo =\*/(?P<wo>true|false),\s*"
    r"/\*pools =\*/(?P<pools>true|false),"
)
_LOOKS = {"window": "queries of the window", "last": "the last query", "all": "all queries", "none": "positions"}
# Values that no setting takes; what is said of them names the bounds.
_WRONG = (-1, "?")


class SettingsError(Exception):
    """The code does not say what the docs need."""


@dataclass(frozen=True)
class Method:
    """A row of native/methods: what a method is called, does and needs."""

    name: str
    summary: str
    queries: bool
    wo: bool
    pools: bool


def native_methods() -> list[Method]:
    """The methods of the library in their order, from the sources."""
    folder = ROOT / "native" / "methods"
    found: list[Method] = []
    for name in _TABLE.findall((folder / "methods.cpp").read_text(encoding="utf-8")):
        match = _METHOD.search((folder / f"{name}.cpp").read_text(encoding="utf-8"))
        if match is None:
            raise SettingsError(f"native/methods/{name}.cpp has no restkv_method that can be read")
        flags = (match[flag] == "true" for flag in ("queries", "wo", "pools"))
        found.append(Method(match["name"], match["summary"], *flags))
    return found


def methods() -> str:
    """Table of all methods."""
    from restkv_local.config import VOTERS_MAX
    from restkv_local.plan.methods import TRAITS

    rows = ["| method | what it keeps | looks at | pooling | memory | time | from |", "|---|---|---|---|---|---|---|"]
    for method in native_methods():
        own = TRAITS[method.name]
        source = f"[{own.source}](../native/methods/{method.name}.cpp)"
        looks = ("keys" if own.keys else _LOOKS[own.queries]) + (", W_o" if method.wo else "")
        pooling = f"{own.pooling} {own.kernel}" if method.pools else "-"
        memory = _MEMORY[own.queries].format(most=VOTERS_MAX) + ("; factors of W_o" if method.wo else "")
        time = own.time or _TIMES[own.queries]
        rows.append(f"| `{method.name}` | {method.summary} | {looks} | {pooling} | {memory} | {time} | {source} |")
    rows.append("| `full` | every cell: an ordinary cache that never evicts | - | - | every cell | none | llama.cpp |")
    return "\n".join(rows)


def settings() -> str:
    """Table of EvictConfig: default, bounds, meaning."""
    from restkv_local.config import EvictConfig

    meanings = _meanings(inspect.getdoc(EvictConfig) or "")
    rows = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for field in fields(EvictConfig):
        meaning = meanings.get(field.name, "see below")
        rows.append(f"| `{field.name}` | {_value(field.default)} | {_bounds(field.name)} | {meaning} |")
    return "\n".join(rows)


def limits() -> str:
    """Table of the other constants of config.py."""
    from restkv_local import config

    rows = [
        ("DEFAULT_CONTEXT", "positions of an engine when nothing is said"),
        ("DEFAULT_BATCH", "tokens decoded at a time"),
        ("DEFAULT_RESERVE", "free cells above a budget that lies between this and eight times this"),
        ("GUIDE_MAX", "most tokens of a question that guide a prefill; of a longer one, the last"),
        ("CELL_PAD", "capacities that are chosen, and contexts, are multiples of this"),
        ("CELLS_MAX", "most cells, and most positions"),
    ]
    lines = ["| constant | value | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {getattr(config, name):,} | {meaning} |" for name, meaning in rows]
    types = ", ".join(f"`{name}`" for name in config.KV_TYPES)
    return "\n".join([*lines, f"| `KV_TYPES` | {types} | types of the cache, for K and V alike or each its own |"])


def families() -> str:
    """The model families that are evicted without being asked twice."""
    from restkv_local.plan.memory import VERIFIED

    return ", ".join(f"`{name}`" for name in VERIFIED) + "."


def _meanings(doc: str) -> dict[str, str]:
    """Name -> text of the entries "name: text" of a docstring, continued by indented lines."""
    found: dict[str, str] = {}
    name = ""
    for line in doc.splitlines():
        entry = re.match(r"(\w+): (.+)", line)
        if entry:
            name = entry[1]
            found[name] = entry[2]
        elif line.startswith(" ") and name:
            found[name] += f" {line.strip()}"
        else:
            name = ""
    return {name: text.replace("|", "\\|") for name, text in found.items()}


def _value(value: Any) -> str:
    return f"`{value!r}`"


def _bounds(name: str) -> str:
    """What the checks of EvictConfig say of a wrong value, so that no bound is written twice."""
    from restkv_local.config import EvictConfig

    default = getattr(EvictConfig(), name)
    if isinstance(default, bool):
        return "True, False"
    said = ""
    for wrong in _WRONG:
        match = re.match(rf"{name} must be (?:one of )?(?:a number )?(.+?); got", _refusal(name, wrong))
        if match:
            said = match[1]
            break
    if not said:
        raise SettingsError(f"EvictConfig does not say what '{name}' may be")
    for n in (2, 3):
        parity = re.match(rf"{name} must be (even|odd)", _refusal(name, n))
        if parity:
            said += f", {parity[1]}"
    said += ", or None" if default is None else "; or a size" if name == "budget" else ""
    return said


def _refusal(name: str, value: object) -> str:
    from restkv_local.config import EvictConfig
    from restkv_local.errors import ConfigError

    try:
        EvictConfig(**{name: value})  # type: ignore[arg-type]
    except ConfigError as err:
        return str(err)
    return ""
