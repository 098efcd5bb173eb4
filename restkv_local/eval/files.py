"""Local data files, read as what they are: input from elsewhere. Every fault is one ConfigError with file and line."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ..errors import ConfigError

T = TypeVar("T")

# Bytes of one line of a JSONL file: a Chinese book of InfiniteBench has about two million tokens, some 10 MB.
LINE_MAX = 64 * 2**20
# Bytes of a file that is one JSON value: HotpotQA's largest is 46 MB, SQuAD's 42 MB.
JSON_MAX = 256 * 2**20
# Bytes of a plain text file.
TEXT_MAX = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """One JSON object with the place that it came from, such as "trec.jsonl, line 7"."""

    place: str
    number: int
    values: dict[str, Any]

    def fail(self, reason: str) -> NoReturn:
        """Refuse this row."""
        raise ConfigError(f"{self.place}: {reason}")

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self.values.get(name) is not None

    def get(self, name: str) -> Any:
        """A field of any type; refused when it is missing."""
        if name not in self.values:
            self.fail(f"the field '{name}' is missing")
        return self.values[name]

    def text(self, name: str) -> str:
        """A field that is text."""
        return self._checked(name, self.get(name))

    def number_text(self, name: str) -> str:
        """A field that is text or a number, as text."""
        return self._scalar(name, self.get(name))

    def texts(self, name: str, least: int = 1) -> tuple[str, ...]:
        """A field that is a list of at least `least` texts."""
        return tuple(self._checked(name, value) for value in self.items(name, least))

    def scalars(self, name: str) -> tuple[str, ...]:
        """A field that is one text or number, or a list of them, as texts; lists within the list are laid flat."""
        value = self.get(name)
        if not isinstance(value, list):
            return (self._scalar(name, value),)
        flat = [inner for item in value for inner in (item if isinstance(item, list) else [item])]
        if not flat:
            self.fail(f"'{name}' is empty")
        return tuple(self._scalar(name, item) for item in flat)

    def items(self, name: str, least: int = 1) -> list[Any]:
        """A field that is a list of at least `least` values."""
        value = self.get(name)
        if not isinstance(value, list):
            self.fail(f"'{name}' must be a list; got {_kind(value)}")
        if len(value) < least:
            self.fail(f"'{name}' must have at least {least} of what it lists; it has {len(value)}")
        return value

    def rows(self, name: str, least: int = 1) -> list[Row]:
        """A field that is a list of objects."""
        return [self.inner(f"{name}[{i}]", value) for i, value in enumerate(self.items(name, least))]

    def inner(self, name: str, value: Any) -> Row:
        """An object inside this one."""
        if not isinstance(value, dict):
            self.fail(f"'{name}' must be an object; got {_kind(value)}")
        return Row(f"{self.place}: {name}", self.number, value)

    def _scalar(self, name: str, value: Any) -> str:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return repr(value)
        return self._checked(name, value)

    def _checked(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            self.fail(f"'{name}' must be text; got {_kind(value)}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            self.fail(f"'{name}' has half of a surrogate pair, which is no character")
        return value


def find(folder: Path | None, names: Sequence[str], task: str) -> Path:
    """The first of these files that exists in the data folder. Raises ConfigError that says what is missing."""
    wanted = " or ".join(names)
    if folder is None:
        raise ConfigError(f"{task} needs a local file: give the folder that holds {wanted}")
    if not folder.is_dir():
        raise ConfigError(f"the data folder '{folder}' does not exist")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{task} needs {wanted} in '{folder}'")


def read_jsonl(path: Path) -> Iterator[Row]:
    """The objects of a file with one JSON object per line, one after the other; blank lines are passed over. Raises
    ConfigError at the first line that is not one, and when there is none."""
    empty = True
    for number, line in _lines(path):
        empty = False
        yield Row(f"{path.name}, line {number}", number, _object(path.name, number, line))
    if empty:
        raise ConfigError(f"{path.name}: the file is empty; one JSON object per line was expected")


def choose(items: Iterable[T], n: int, seed: str) -> list[T]:
    """At most `n` of the items in their order, each as likely as any other (Vitter's algorithm R). All are looked at,
    so that a fault anywhere is found; `n` at a time are in memory."""
    rng = random.Random(seed)
    kept: list[tuple[int, T]] = []
    for place, item in enumerate(items):
        if place < n:
            kept.append((place, item))
        elif (slot := rng.randrange(place + 1)) < n:
            kept[slot] = (place, item)
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])]


def read_json(path: Path) -> Any:
    """The one JSON value of a file."""
    text = _decode(path.name, _bytes(path, JSON_MAX))
    if not text.strip():
        raise ConfigError(f"{path.name}: the file is empty; JSON was expected")
    return _parse(path.name, 1, text)


def read_objects(path: Path) -> Iterator[Row]:
    """The objects of a file that is either one JSON list or has one object per line. Never none."""
    with _open(path) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from read_jsonl(path)
        return
    values = read_json(path)
    if not values:
        raise ConfigError(f"{path.name}: the list is empty")
    for i, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise ConfigError(f"{path.name}, item {i}: an object was expected; got {_kind(value)}")
        yield Row(f"{path.name}, item {i}", i, value)


def read_text(path: Path) -> str:
    """A plain text file in UTF-8 that is not blank."""
    if not path.is_file():
        raise ConfigError(f"the file '{path}' does not exist")
    text = _decode(path.name, _bytes(path, TEXT_MAX))
    if not text.strip():
        raise ConfigError(f"{path.name}: the file is empty; text was expected")
    return text


# ---- reading -----------------------------------------------------------------------------------


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as err:
        raise ConfigError(f"'{path}' cannot be read: {os.strerror(err.errno or 0)}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank, never more than LINE_MAX bytes in memory."""
    with _open(path) as file:
        number = 0
        while line := file.readline(LINE_MAX + 1):
            number += 1
            if len(line) > LINE_MAX:
                raise ConfigError(f"{path.name}, line {number}: longer than {LINE_MAX // 2**20} MiB")
            if line.strip():
                yield number, _decode(path.name, line, number)


def _bytes(path: Path, limit: int) -> bytes:
    with _open(path) as file:
        data: bytes = file.read(limit + 1)
    if len(data) > limit:
        raise ConfigError(f"{path.name}: larger than {limit // 2**20} MiB")
    return data


def _decode(name: str, data: bytes, first: int = 1) -> str:
    """Text of UTF-8 bytes; `first` is the number of the first line, for the error."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = first + data[: err.start].count(b"\n")
        raise ConfigError(f"{name}, line {line}: not UTF-8 (byte {data[err.start]:#04x})") from None


def _object(name: str, number: int, line: str) -> dict[str, Any]:
    value = _parse(name, number, line.rstrip("\r\n"))
    if not isinstance(value, dict):
        raise ConfigError(f"{name}, line {number}: an object was expected; got {_kind(value)}")
    return value


def _parse(name: str, first: int, text: str) -> Any:
    """JSON as the standard has it: no NaN, no number or nesting that Python cannot hold."""

    def constant(word: str) -> NoReturn:
        raise ConfigError(f"{name}, line {first}: {word} is not JSON")

    try:
        return json.loads(text, parse_constant=constant)
    except json.JSONDecodeError as err:
        reason = f"not JSON ({err.msg} at column {err.colno})"
        raise ConfigError(f"{name}, line {first + err.lineno - 1}: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{name}, line {first}: nested too deeply") from None
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(f"{name}, line {first}: a number has too many digits") from None


def _kind(value: Any) -> str:
    """How JSON calls the type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    kinds = ((str, "text"), (dict, "an object"), (list, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "a number")
