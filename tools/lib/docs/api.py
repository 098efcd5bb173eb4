"""The API reference, as blocks of docs/api.md: signatures and docstrings of everything public."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

PACKAGE = "restkv_local"
# What each block holds, as module:name.
SECTIONS: dict[str, tuple[str, ...]] = {
    "engine": ("engine.engine:Engine",),
    "asyncio": (
        "engine.aio:AsyncEngine", "engine.aio:Stream", "engine.aio:Load", "engine.aio:Read", "engine.aio:Recall",
        "engine.aio:Evict", "engine.aio:Token", "engine.aio:Notice",
    ),
    "settings": ("config:EvictConfig",),
    "planning": (
        "plan:plan", "plan.memory:MemoryPlan", "plan.archive:ArchivePlan", "plan.allocation:Shares",
    ),
    "reports": (
        "engine.report:Report", "engine.report:Eviction", "engine.report:ArchiveReport", "engine.report:RecallReport",
        "engine.report:Source", "plan.devices:DeviceMemory", "engine.state:EngineState",
        "engine.session_header:SavedSession",
    ),
    "devices": (
        "check:devices", "check:check_device", "check:check_fused", "check.result:DeviceCheck", "check.devices:Device",
    ),
    "reference": ("reference.scores:score", "reference.lean:score_lean", "native.kernels:score"),
}  # fmt: skip
_WIDTH = 100


def block(section: str) -> Callable[[], str]:
    """The block of a section."""
    return lambda: "\n\n".join(_entry(name) for name in SECTIONS[section])


def errors() -> str:
    """Every error with what it is a subclass of."""
    module = importlib.import_module(f"{PACKAGE}.errors")
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Exception)]
    rows = [f"| `{one.__name__}` | {_bases(one)} | {_line(one)} |" for one in found]
    return "\n".join(["| error | is a | meaning |", "|---|---|---|", *rows])


def _bases(error: type) -> str:
    return ", ".join(f"`{base.__name__}`" for base in error.__bases__)


def _line(of: Any) -> str:
    return " ".join(inspect.getdoc(of).split())  # type: ignore[union-attr]


def _entry(name: str) -> str:
    module, _, attribute = name.partition(":")
    of = getattr(importlib.import_module(f"{PACKAGE}.{module}"), attribute)
    public = attribute in importlib.import_module(PACKAGE).__all__
    home = PACKAGE if public else f"{PACKAGE}.{module}"
    parts = [f"### {attribute}", f"`from {home} import {attribute}`", _code(attribute, of), _text(of)]
    if inspect.isclass(of):
        parts += [part for member, value in members(of) for part in (_member(member, value), _text(value))]
    return "\n\n".join(parts)


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class that are this package's own, as they are written, bases last.

    An engine's guard wraps methods: what counts is where the wrapped one is from.
    """
    homes = {base.__module__: i for i, base in reversed(list(enumerate(cls.__mro__)))}
    found = []
    for name in dir(cls):
        value = inspect.getattr_static(cls, name)
        plain: Any = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        function = inspect.unwrap(plain)
        if name.startswith("_") or not inspect.isfunction(function) or not function.__module__.startswith(PACKAGE):
            continue
        found.append((homes.get(function.__module__, len(homes)), function.__code__.co_firstlineno, name, value))
    for _, _, name, value in sorted(found, key=lambda one: one[:3]):
        yield name, value


def _member(name: str, value: Any) -> str:
    if isinstance(value, property):
        return f"`{name}`: `{_annotation(inspect.signature(value.fget).return_annotation)}`"  # type: ignore[arg-type]
    return _code(name, value, drop_self=True)


def _code(name: str, of: Any, drop_self: bool = False) -> str:
    """A signature as code, one argument per line where it is long."""
    signature = inspect.signature(of)
    given = list(signature.parameters.values())[1 if drop_self else 0 :]
    words: list[str] = []
    for i, one in enumerate(given):
        before = given[i - 1].kind if i else None
        if one.kind is one.KEYWORD_ONLY and before not in (one.KEYWORD_ONLY, one.VAR_POSITIONAL):
            words.append("*")
        words.append(_argument(one))
    back = "" if inspect.isclass(of) else f" -> {_annotation(signature.return_annotation)}"
    prefix = "async def " if inspect.iscoroutinefunction(inspect.unwrap(of)) else ""
    line = f"{prefix}{name}({', '.join(words)}){back}"
    if len(line) > _WIDTH:
        line = "\n".join([f"{prefix}{name}(", *(f"    {word}," for word in words), f"){back}"])
    return f"```text\n{line}\n```"


def _argument(one: inspect.Parameter) -> str:
    stars = "*" if one.kind is one.VAR_POSITIONAL else "**" if one.kind is one.VAR_KEYWORD else ""
    text = f"{stars}{one.name}"
    if one.annotation is not one.empty:
        text += f": {_annotation(one.annotation)}"
    if one.default is not one.empty:
        made = "..." if type(one.default).__name__.startswith("_HAS_DEFAULT_FACTORY") else repr(one.default)
        text += f" = {made}" if one.annotation is not one.empty else f"={made}"
    return text


def _annotation(annotation: Any) -> str:
    if annotation is inspect.Signature.empty:
        return "Any"
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _text(of: Any) -> str:
    """A docstring as Markdown."""
    text = inspect.getdoc(of) or ""
    if isinstance(of, property) or not callable(inspect.unwrap(of)):
        names = set()
    else:
        names = set(inspect.signature(of).parameters)
    if dataclasses.is_dataclass(of):
        names |= {field.name for field in dataclasses.fields(of)}
    return "\n\n".join(_paragraph(part, names) for part in re.split(r"\n\s*\n", text))


def _paragraph(text: str, names: set[str]) -> str:
    """What begins with the name of an argument or a field is a list: one item for each that begins a sentence."""
    if not names or not re.match(rf"(?:{'|'.join(sorted(names))})\b[^.]*?: ", text):
        return "\n".join(line.rstrip() for line in text.splitlines())
    one = rf"(?:{'|'.join(sorted(names))})(?:\([^)]*\))?"
    text = " ".join(text.split())
    begins = [found.start(1) for found in re.finditer(rf"(?:^|(?<=[.;] ))({one}(?:, {one})*: )", text)]
    plain = re.search(r"(?<=\. )(?:Raises|Other keyword arguments) ", text)
    end = plain.start() if plain and plain.start() > begins[-1] else len(text)
    items = [text[a:b] for a, b in zip(begins, [*begins[1:], end], strict=True)]
    lines = [_wrapped(_item(item), "  ") for item in items]
    return "\n".join(lines) + (f"\n\n{_wrapped(text[end:])}" if end < len(text) else "")


def _item(text: str) -> str:
    told, _, rest = text.partition(": ")
    return f"- {', '.join(f'`{name}`' for name in re.split(r', (?![^(]*[)])', told))}: {rest.strip()}"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
