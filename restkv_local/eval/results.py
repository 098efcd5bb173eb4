"""Results: one JSON object per line, appended as it is measured. A run that is stopped loses at most its last line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from ..config import EvictConfig
from ..errors import RestkvError
from .compact import COMMON, merged

Record = dict[str, Any]
SUFFIX = ".jsonl"
SCHEMA = 1
# A record is the same measurement again when these agree.
_IDENTITY = ("task", "options", "context", "seed", "sample", "setting")
_DEFAULTS = asdict(EvictConfig())
_NEEDED = ("task", "context", "seed", "sample", "setting", "cache", "scores")


class ResultsError(RestkvError):
    """A file of results cannot be read or must not be written."""


def identity(record: Record) -> str:
    """What makes a record one measurement: two with the same are repetitions."""
    model = record.get("model", {})
    values = {name: record.get(name) for name in _IDENTITY} | {"model": [model.get("name"), model.get("bytes")]}
    values["setting"] = chosen(record.get("setting") or {})
    return json.dumps(values, sort_keys=True, ensure_ascii=False)


def chosen(setting: Record) -> Record:
    """A setting without what has its default: a record from before an option existed is that of its default."""
    evict = {
        name: value
        for name, value in setting.get("evict", {}).items()
        if name not in _DEFAULTS or _DEFAULTS[name] != value
    }
    return {**setting, "evict": evict}


class ResultFile:
    """Appends records to DIR/NAME.jsonl.

    resume False: DIR must be empty or not there yet. True: records that are there are kept, and `has` knows them; a
    torn last line, which a stopped run leaves, is removed. Raises ResultsError.
    """

    def __init__(
        self, folder: Path, name: str, *, resume: bool, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.path = folder / f"{name}{SUFFIX}"
        try:
            if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ResultsError(f"'{folder}' is not empty; go on there with --resume, or name another folder")
            folder.mkdir(parents=True, exist_ok=True)
            self.records = _repaired(self.path, say) if self.path.exists() else []
            self._file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            raise ResultsError(f"'{folder}' cannot be written: {error.strerror or error}") from error
        self._known = {identity(record) for record in self.records}

    def has(self, record: Record) -> bool:
        """Whether the measurement that a record (without its scores) stands for is there."""
        return identity(record) in self._known

    def add(self, record: Record) -> None:
        """Append a record; it is in the file when this returns."""
        self._file.write(json.dumps({"schema": SCHEMA, **record}, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        self.records.append(record)
        self._known.add(identity(record))

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self.records:
            # A run that never began leaves nothing to resume.
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder holds something else
                self.path.parent.rmdir()


def _repaired(path: Path, say: Callable[[str], None]) -> list[Record]:
    """The records of a file, which then ends with a whole line. Raises ResultsError for a compact one."""
    data = path.read_bytes()
    if data.startswith(f'{{"{COMMON}":'.encode()):
        raise ResultsError(f"'{path}' is compact and cannot go on; name the folder that it was made from")
    whole, torn = _split(data)
    if torn is not None:
        say(f"{path}: its last line was torn when a run was stopped; it is measured again")
        with open(path, "r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    elif data and not data.endswith(b"\n"):
        with open(path, "ab") as file:
            file.write(b"\n")
    return list(_records(path, whole))


def _split(data: bytes) -> tuple[bytes, bytes | None]:
    """Whole lines, and a last one without end that is no whole record (None: there is none)."""
    end = data.rfind(b"\n") + 1
    rest = data[end:]
    if not rest.strip():
        return data, None
    try:
        json.loads(rest)
    except ValueError:
        return data[:end], rest
    return data, None


def _records(path: Path, data: bytes) -> Iterator[Record]:
    common: Record = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ResultsError(f"{path}, line {number}: not JSON ({error}); remove the line") from None
        if isinstance(record, dict) and isinstance(record.get(COMMON), dict):
            common = record[COMMON]
            continue
        if common and isinstance(record, dict):
            record = merged(common, record)
        missing = [name for name in _NEEDED if not isinstance(record, dict) or name not in record]
        if missing:
            raise ResultsError(f"{path}, line {number}: no result of restkv-eval ('{missing[0]}' is missing)")
        if record.get("schema", SCHEMA) != SCHEMA:
            raise ResultsError(
                f"{path}, line {number}: written in form {record['schema']}, and this version reads form {SCHEMA}"
            )
        yield record


def read_results(paths: Iterable[Path], say: Callable[[str], None] = lambda text: None) -> list[Record]:
    """All records of files and of folders of files (searched below them); of repetitions the last one counts.

    A torn last line is left out, and said. Raises ResultsError with the line that cannot be read.
    """
    found: dict[str, Record] = {}
    for path in paths:
        if path.is_dir():
            files = sorted(path.rglob(f"*{SUFFIX}"))
            if not files:
                raise ResultsError(f"'{path}' holds no results (*{SUFFIX})")
        else:
            files = [path]
        for file in files:
            try:
                data = file.read_bytes()
            except OSError as error:
                raise ResultsError(f"'{file}' cannot be read: {error.strerror or error}") from error
            whole, torn = _split(data)
            if torn is not None:
                say(f"{file}: its last line is torn and left out")
            found.update((identity(record), record) for record in _records(file, whole))
    if not found:
        raise ResultsError("there is no result in what was given")
    return list(found.values())
