"""Results in few bytes: lines that have much in common name it once.

A line {"common": {...}} holds what the records after it share, until the next such line; a record is the common part
with its own line merged in, object by object. Answers and references are left out, and dates are cut to the day.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

COMMON = "common"
_LEFT_OUT = ("answer", "references", "schema")
_GROUP = ("task", "options", "context", "seed", "setting", "model", "run")
Record = dict[str, Any]


def compact_lines(records: Iterable[Record], schema: int) -> Iterator[str]:
    """The lines of a file that `expand` reads back; records of one setting stand together."""
    groups: dict[str, list[Record]] = {}
    for record in map(_shortened, records):
        key = json.dumps([record.get(name) for name in _GROUP], sort_keys=True)
        groups.setdefault(key, []).append(record)
    for group in groups.values():
        common = _shared(group)
        yield _line({COMMON: {"schema": schema, **common}})
        for record in group:
            yield _line(_without(record, common))


def merged(common: Record, record: Record) -> Record:
    """A record with what it shares: objects are merged, everything else is the record's own where it has it."""
    found = dict(common)
    for name, value in record.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = merged(found[name], value) if both else value
    return found


def _shortened(record: Record) -> Record:
    short = {name: value for name, value in record.items() if name not in _LEFT_OUT}
    if "date" in short.get("run", {}):
        short["run"] = {**short["run"], "date": short["run"]["date"][:10]}
    return short


def _shared(group: Sequence[Record]) -> Record:
    """What all records of a group have, and have alike. An object that is shared in part keeps its shared part."""
    found: Record = {}
    for name, value in group[0].items():
        values = [record.get(name) for record in group]
        if all(other == value and name in record for other, record in zip(values, group, strict=True)):
            found[name] = value
        elif all(isinstance(other, dict) for other in values):
            found[name] = _shared([other for other in values if isinstance(other, dict)])
    return found


def _without(record: Record, common: Record) -> Record:
    rest: Record = {}
    for name, value in record.items():
        if name not in common:
            rest[name] = value
        elif value != common[name]:
            rest[name] = _without(value, common[name])
    return rest


def _line(value: Record) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
