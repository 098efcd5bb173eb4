"""Rows of figures from records: per task, context and setting, means with 95 % intervals, against the full cache."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .results import Record, chosen
from .stats import Mean, difference_of, mean_of
from .variant import FULL

# Figures that lie between 0 and 1.
SHARES = ("score", "top1", "found")
# Figures of which less is better.
LOWER = ("kl", "nll", "perplexity")


@dataclass(frozen=True)
class Row:
    """A setting on a task at a context. part: what the task's report is split by first (a kind of text or needle), or
    "". means: by figure; differences: paired, to the full cache on the same samples, where that was run.
    bytes: memory of the cells when an answer begins, mean over the samples. values: by figure and sample."""

    model: str
    task: str
    part: str
    context: int
    name: str
    method: str
    prefill: str | None
    budget: int | str | None
    reserve: int | None
    kv_type: str
    bytes: float
    cells: float
    n: int
    means: dict[str, Mean]
    differences: dict[str, Mean]
    values: dict[str, dict[str, float]] = field(repr=False)

    @property
    def full(self) -> bool:
        """Whether it is the yardstick."""
        return self.method == FULL

    def json(self) -> dict[str, Any]:
        """For --json."""
        named = {key: value for key, value in vars(self).items() if key not in ("means", "differences", "values")}
        for key in ("means", "differences"):
            named[key] = {figure: mean._asdict() for figure, mean in getattr(self, key).items()}
        return named


def setting_key(record: Record) -> str:
    """What makes two records measurements of one setting, whatever the seed of its random numbers is."""
    setting = chosen(record["setting"])
    setting["evict"].pop("seed", None)
    return json.dumps(setting, sort_keys=True)


def sample_key(record: Record) -> str:
    """What makes two records measurements of one sample."""
    model = record.get("model", {})
    names = ("task", "options", "context", "seed", "sample")
    # The full cache is no yardstick for a cache of other types; both are measured on the same sample all the same.
    return json.dumps([[record.get(name) for name in names], model.get("name"), model.get("bytes")], sort_keys=True)


def part_of(record: Record) -> str:
    """What a task's report is split by first."""
    return str(record.get("labels", {}).get("kind", ""))


def figures(record: Record) -> dict[str, float]:
    """The numbers of a record's scores."""
    return {
        name: float(value)
        for name, value in record["scores"].items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "answer_tokens"
    }


def rows(records: Iterable[Record], *, by_part: bool = False) -> list[Row]:
    """Tasks, lengths, prefills and methods in the order in which they were measured, but budgets by size and the full
    cache first."""
    records = list(records)
    yardstick = {
        (sample_key(record), record["setting"].get("kv_type")): record
        for record in records
        if record["setting"]["method"] == FULL
    }
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        model = record.get("model", {}).get("name", "")
        part = part_of(record) if by_part else ""
        groups.setdefault((model, record["task"], part, record["context"], setting_key(record)), []).append(record)
    found = [_row(key, group, yardstick) for key, group in groups.items()]
    seen: dict[Any, int] = {}

    def place(row: Row) -> tuple[Any, ...]:
        keys = ((row.model, row.task, row.part, row.context), ("prefill", row.prefill), ("name", row.name))
        task, prefill, name = (seen.setdefault(key, len(seen)) for key in keys)
        budget = (isinstance(row.budget, str), row.budget or 0)  # sizes such as 512MB behind numbers of cells
        return (task, row.method != FULL, prefill, budget, name)

    places = [place(row) for row in found]
    return [row for _, row in sorted(zip(places, found, strict=True), key=lambda pair: pair[0])]


def _row(key: tuple[Any, ...], group: Sequence[Record], yardstick: dict[tuple[str, Any], Record]) -> Row:
    model, task, part, context, _ = key
    setting = group[0]["setting"]
    names = list(dict.fromkeys(name for record in group for name in figures(record)))
    means, differences = {}, {}
    for name in names:
        values = [(record, figures(record)[name]) for record in group if name in figures(record)]
        means[name] = mean_of([value for _, value in values], share=name in SHARES)
        if setting["method"] == FULL:
            continue
        ours, theirs = [], []
        for record, value in values:
            full = yardstick.get((sample_key(record), setting.get("kv_type")))
            if full is not None and name in figures(full):
                ours.append(value)
                theirs.append(figures(full)[name])
        if ours:
            differences[name] = difference_of(ours, theirs)
    return Row(
        model=model,
        task=task,
        part=part,
        context=context,
        name=setting["name"],
        method=setting["method"],
        prefill=setting.get("prefill"),
        budget=setting.get("budget"),
        reserve=setting.get("evict", {}).get("reserve"),
        kv_type=setting.get("kv_type", ""),
        bytes=sum(record["cache"]["bytes"] for record in group) / len(group),
        cells=sum(record["cache"]["cells"] for record in group) / len(group),
        n=len(group),
        means=means,
        differences=differences,
        values={
            name: {sample_key(record): figures(record)[name] for record in group if name in figures(record)}
            for name in names
        },
    )
