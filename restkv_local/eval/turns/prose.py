"""Real prose that is there without a network: Python's language reference as `help()` shows it, and what its standard
library says of itself. Both are those of the Python that runs."""

from __future__ import annotations

import ast
import functools
import random
import re

from ...errors import ConfigError
from .functions import sources

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.])\s+(?=[A-Z])")
# Grammars, examples, tables and options.
_NO_PROSE = re.compile(r"::|>>>|\*\*\*|===|--|[{}|<>=]|\w_\w*_")
_WORDS_MIN = 8
# Longer ones are lists; and a text could not come near to its length.
_SENTENCE_MAX = 50


@functools.lru_cache(maxsize=1)
def sentences() -> tuple[str, ...]:
    """All sentences of the prose, each once, in their order. Raises ConfigError where this Python has none."""
    texts: list[str] = []
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some systems leave it out
        pass
    else:
        texts += [topics[name] for name in sorted(topics)]
    for source in sources():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                texts.append(ast.get_docstring(node) or "")
    found: dict[str, None] = {}
    for text in texts:
        for paragraph in _PARAGRAPH.split(text):
            joined = " ".join(paragraph.split())
            whole = joined[:1].isupper() and joined.endswith(".") and len(joined.split()) >= _WORDS_MIN
            if whole and not _NO_PROSE.search(joined):
                for sentence in _SENTENCE.split(joined):
                    if len(sentence.split()) <= _SENTENCE_MAX:
                        found[sentence] = None
    if not found:
        raise ConfigError("this Python has no documentation to read; install one with pydoc_data or with its sources")
    return tuple(found)


def others(rng: random.Random) -> list[str]:
    """All sentences from a random one on; behind the last comes the first."""
    known = sentences()
    start = rng.randrange(len(known))
    return [*known[start:], *known[:start]]
