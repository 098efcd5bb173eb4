"""Reads a grammar (GBNF) as llama.cpp does, and says in a sentence what is wrong with it.

llama.cpp ends the process for a grammar that it cannot read, and never returns for one that grows to the left where it
does not see that.
"""

from __future__ import annotations

import functools
import graphlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ...errors import ConfigError

# As in llama-grammar.cpp.
_REPETITIONS_MAX = 2000
_ESCAPES = {"x": 2, "u": 4, "U": 8}
_PLAIN_ESCAPES = 'trn\\"[]-'
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
# llama.cpp recurses for each: a stack of 8 MB holds many times as many.
NESTING_MAX = 1000
DEPTH_MAX = 10000

_CHARACTERS = ""  # stands in an alternative for characters and tokens; no rule has this name
_Alternative = list[str]


@dataclass
class _Group:
    """Alternatives that are being read, of a rule or of a group in round brackets."""

    name: str
    rules_before: int
    alternatives: list[_Alternative] = field(default_factory=lambda: [[]])
    last: int | None = None  # where the last item begins; None: there is none that could be repeated
    rules: int = 1  # that the last item takes


class Grammar:
    """The rules of a grammar: for each name its alternatives, each a list of names ("" for characters).

    one_token: whether a text, as "<|im_end|>", is exactly one token; n_vocab: of the model. Raises ConfigError.
    """

    def __init__(self, text: str, n_vocab: int, one_token: Callable[[str], bool]) -> None:
        self._text, self._at = text, 0
        self._n_vocab, self._one_token = n_vocab, one_token
        self._names: set[str] = set()
        self._made = 0
        self.rules: dict[str, list[_Alternative]] = {}
        if "\0" in text:
            raise ConfigError("the grammar holds a zero character, where its text would end; leave it out")
        self._space(True)
        while self._at < len(text):
            self._rule()

    # ---- reading -------------------------------------------------------------------------------

    def _fail(self, what: str) -> ConfigError:
        line = self._text.count("\n", 0, self._at) + 1
        found = self._text[self._at : self._at + 20].split("\n")[0]
        return ConfigError(f"the grammar cannot be read: line {line}: {what} at {found!r}")

    def _next(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _space(self, newlines: bool) -> None:
        while (char := self._next()) and char in (" \t#\r\n" if newlines else " \t#"):
            self._at += 1
            while char == "#" and self._next() not in ("", "\r", "\n"):
                self._at += 1

    def _word(self) -> str:
        start = self._at
        while self._next() in _NAME and self._next():
            self._at += 1
        if start == self._at:
            raise self._fail("a name is missing")
        return self._text[start : self._at]

    def _number(self) -> int:
        start = self._at
        while self._next().isascii() and self._next().isdigit():
            self._at += 1
        if start == self._at:
            raise self._fail("a number is missing")
        digits = self._text[start : self._at]
        return int(digits) if len(digits) < 10 else 10**9

    def _char(self) -> None:
        if self._next() == "":
            raise self._fail("the end comes inside quotes or brackets")
        if self._next() != "\\":
            self._at += 1
            return
        kind = self._text[self._at + 1 : self._at + 2]
        if kind and kind in _PLAIN_ESCAPES:
            self._at += 2
            return
        size = _ESCAPES.get(kind)
        digits = self._text[self._at + 2 : self._at + 2 + (size or 0)]
        if size is None or len(digits) != size or any(d not in "0123456789abcdefABCDEF" for d in digits):
            raise self._fail("an unknown escape")
        self._at += 2 + size

    def _rule(self) -> None:
        name = self._word()
        self._names.add(name)
        self._space(False)
        if not self._text.startswith("::=", self._at):
            raise self._fail("::= is missing")
        self._at += 3
        self._space(True)
        self.rules[name] = self._alternatives(name)
        if self._next() and self._next() not in "\r\n":
            raise self._fail("the rule does not end")
        self._space(True)

    def _new_name(self, base: str) -> str:
        self._made += 1
        return f"{base}_{self._made}"

    @property
    def _n_rules(self) -> int:
        return len(self._names) + self._made

    def _alternatives(self, name: str) -> list[_Alternative]:
        groups = [_Group(name, self._n_rules)]
        while True:
            group, char = groups[-1], self._next()
            nested = len(groups) > 1
            if char == "(":
                if len(groups) > NESTING_MAX:
                    raise self._fail(f"round brackets are nested more than {NESTING_MAX} deep")
                self._at += 1
                self._space(True)
                before = self._n_rules
                groups.append(_Group(self._new_name(name), before))
            elif char == "|":
                self._at += 1
                self._space(True)
                group.alternatives.append([])
                group.last = None
            elif char == ")" and nested:
                groups.pop()
                self.rules[group.name] = group.alternatives
                self._item(groups[-1], group.name, self._n_rules - group.rules_before)
                self._at += 1
                self._space(len(groups) > 1)
            elif not self._element(group, nested):
                if nested:
                    raise self._fail("')' is missing")
                return group.alternatives

    def _item(self, group: _Group, name: str, rules: int = 1) -> None:
        group.last, group.rules = len(group.alternatives[-1]), max(1, rules)
        group.alternatives[-1].append(name)

    def _element(self, group: _Group, nested: bool) -> bool:
        """Read one item or repetition; False when there is none."""
        char = self._next()
        if char and char in '"[':
            self._characters(group, char)
        elif char and char in "<!":
            self._token()
            self._item(group, _CHARACTERS)
        elif char and char in _NAME:
            name = self._word()
            self._names.add(name)
            self._item(group, name)
        elif char == ".":
            self._at += 1
            self._item(group, _CHARACTERS)
        elif char and char in "*+?{":
            self._repetition(group, char, nested)
        else:
            return False
        self._space(nested)
        return True

    def _characters(self, group: _Group, opening: str) -> None:
        closing = '"' if opening == '"' else "]"
        self._at += 1
        if opening == "[" and self._next() == "^":
            self._at += 1
        start = self._at
        while self._next() != closing:
            self._char()
            if opening == "[" and self._next() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                self._char()
        if self._at > start:
            self._item(group, _CHARACTERS)
        else:
            group.last = None
        self._at += 1

    def _token(self) -> None:
        if self._next() == "!":
            self._at += 1
        start, end = self._at, self._text.find(">", self._at)
        if self._next() != "<" or end < 0:
            raise self._fail("a token <...> is missing")
        name = self._text[start : end + 1]
        if name.startswith("<["):
            digits = name[2:-2]
            known = name.endswith("]>") and digits.isascii() and digits.isdigit() and int(digits[:10]) < self._n_vocab
        else:
            known = self._one_token(name)
        if not known:
            raise self._fail("no token of this model")
        self._at = end + 1

    def _repetition(self, group: _Group, char: str, nested: bool) -> None:
        start = self._at
        self._at += 1
        self._space(nested)
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(char) or self._times(nested)
        if group.last is None:
            self._at = start
            raise self._fail("nothing is there to be repeated")
        if least > _REPETITIONS_MAX or group.rules * (most or least or 1) > _REPETITIONS_MAX:
            self._at = start
            raise self._fail(f"more than {_REPETITIONS_MAX} repetitions, or rules that are repeated,")
        if most is not None and most < least:
            self._at = start
            raise self._fail("the most repetitions are fewer than the least")
        alternative = group.alternatives[-1]
        item = alternative[group.last :]
        if least == 0:
            del alternative[group.last :]
        optional = 1 if most is None else most - least
        if optional:
            name = self._new_name(group.name)
            self.rules[name] = [[*item, name] if most is None else item, []]
            self._made += optional - 1
            alternative.append(name)
        group.rules *= most or least or 1
        if len(alternative) == group.last:
            group.last = None

    def _times(self, nested: bool) -> tuple[int, int | None]:
        least = self._number()
        self._space(nested)
        most: int | None = least
        if self._next() == ",":
            self._at += 1
            self._space(nested)
            most = self._number() if self._next().isascii() and self._next().isdigit() else None
            self._space(nested)
        if self._next() != "}":
            raise self._fail("'}' is missing")
        self._at += 1
        return least, None if most is not None and most > _REPETITIONS_MAX >= least else most

    # ---- checking ------------------------------------------------------------------------------

    def check(self, root: str) -> None:
        """Raise ConfigError for rules that are missing, grow to the left, or lead too deep."""
        if not self.rules:
            raise ConfigError("the grammar is empty; give it at least a rule named 'root'")
        missing = next((name for name in sorted(self._names) if name not in self.rules), None)
        if missing is not None:
            raise ConfigError(f"the grammar uses the rule '{missing}' and does not define it")
        if root not in self.rules:
            raise ConfigError(f"the grammar has no rule named '{root}', where it would begin")
        edges = {name: dict(self._begins_with(name)) for name in self.rules}
        try:
            order = list(graphlib.TopologicalSorter({name: list(of) for name, of in edges.items()}).static_order())
        except graphlib.CycleError:
            self._refuse_growth(edges)
            return
        depth: dict[str, int] = {}
        for name in order:
            depth[name] = 1 + max((depth[other] for other in edges[name]), default=0)
        if max(depth.values()) > DEPTH_MAX:
            raise ConfigError(f"the grammar's rules begin with each other more than {DEPTH_MAX} deep")

    def left_recursive(self) -> str | None:
        """A rule that begins with itself, if only by way of others or of rules that may be empty."""
        edges = {name: dict(self._begins_with(name)) for name in self.rules}
        return next((name.split("_")[0] for name in edges if name in _reached(edges, edges[name])), None)

    def _begins_with(self, name: str) -> Iterator[tuple[str, bool]]:
        """Rules that an alternative may begin with, and whether something follows them there."""
        found: dict[str, bool] = {}
        for alternative in self.rules[name]:
            for at, item in enumerate(alternative):
                if item == _CHARACTERS:
                    break
                found[item] = found.get(item, False) or at + 1 < len(alternative)
                if item not in self._empty:
                    break
        return iter(found.items())

    @functools.cached_property
    def _empty(self) -> set[str]:
        """Rules that may be empty."""
        users: dict[str, set[str]] = {}
        for name, alternatives in self.rules.items():
            for item in (item for alternative in alternatives for item in alternative):
                users.setdefault(item, set()).add(name)
        empty: set[str] = set()
        todo = set(self.rules)
        while todo:
            name = todo.pop()
            if name not in empty and any(all(item in empty for item in one) for one in self.rules[name]):
                empty.add(name)
                todo |= users.get(name, set())
        return empty

    def _refuse_growth(self, edges: dict[str, dict[str, bool]]) -> None:
        for name, begins in edges.items():
            for other, follows in begins.items():
                if follows and (name == other or name in _reached(edges, [other])):
                    raise growing(name.split("_")[0])


def growing(name: str) -> ConfigError:
    """What is said of a rule that recurses to the left."""
    return ConfigError(f"the grammar's rule '{name}' begins with itself; put the repetition at its end, or use *")


def _reached(edges: dict[str, dict[str, bool]], start: Iterable[str]) -> set[str]:
    todo, seen = list(start), set[str]()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += edges[name]
    return seen
