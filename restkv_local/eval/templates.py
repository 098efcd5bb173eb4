"""Prompt templates with `{context}` and `{input}`. Filled by cutting at the marks: a template may come from a file, and
Python's own formatting would let it reach into objects."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ConfigError

_MARK = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """before: what stands before the document; after: what follows it, with marks of other fields."""

    before: str
    after: str

    def question(self, **fields: str) -> str:
        """What follows the document, with its fields filled in."""
        return _MARK.sub(lambda match: fields[match[1]], self.after)


def parse(place: str, text: str, fields: frozenset[str] = frozenset({"input"})) -> Template:
    """A template from its text. Raises ConfigError (naming `place`) unless `{context}` stands in it once, before every
    other mark, and all others are in `fields`."""
    before, mark, after = text.partition("{context}")
    unknown = [name for name in _MARK.findall(f"{before}{after}") if name not in fields]
    if not mark or unknown or _MARK.search(before):
        allowed = " and ".join(f"{{{name}}}" for name in sorted(fields))
        raise ConfigError(f"{place}: a template needs {{context}} once and may have {allowed} after it")
    return Template(before, after)
