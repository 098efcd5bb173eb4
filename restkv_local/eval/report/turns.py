"""What the report says of many questions about one text: the first and the later ones, and what each recall took."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ...plan.machine import size
from ..results import Record
from ..stats import Mean, difference_of, mean_of
from ..summary import part_of, sample_key, setting_key
from ..variant import FULL
from .cells import Cell, mean_text

TITLE = "The first question and the later ones: log-probability of the right answer"
HEADS = [
    "kind", "context", "row", "budget", "questions", "first", "to the full cache", "later", "to the full cache",
    "per token", "score", "found", "recall", "read for it", "question",
]  # fmt: skip
EXPLAINED = (
    "per token: mean log-probability of a token of the right answer. score: the part of the answer that would be "
    "written so. found: the share of the positions that hold the answer which are in the cells when it begins, "
    "mean over layers and KV heads. recall: time of a recall for a question; read for it: bytes from the archive;"
    " question: time from its first token to the first of its answer, the recall included."
)
_MILLI = 1000


def of_turns(records: Sequence[Record]) -> list[Record]:
    """Those that were asked in turn."""
    return [record for record in records if "turn" in record.get("labels", {})]


def turn_table(records: Sequence[Record]) -> list[list[Cell]]:
    """Lines of one task and model, by HEADS: kinds and lengths in the order in which they were measured."""
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for record in records:
        groups.setdefault((part_of(record), record["context"], setting_key(record)), []).append(record)
    full = {
        (sample_key(record), record["setting"].get("kv_type")): record
        for record in records
        if record["setting"]["method"] == FULL
    }
    seen = {key[:2]: number for number, key in reversed(list(enumerate(groups)))}
    return [_line(kind, context, groups[kind, context, setting], full)
            for kind, context, setting in sorted(groups, key=lambda key: seen[key[:2]])]  # fmt: skip


def _line(kind: str, context: int, group: Sequence[Record], full: dict[tuple[str, Any], Record]) -> list[Cell]:
    setting = group[0]["setting"]
    texts = [setting["name"]]
    numbers = ["-" if setting["budget"] is None else str(setting["budget"]), str(len(group))]
    for later in (False, True):
        mine = [record for record in group if (record["labels"]["turn"] > 1) == later]
        numbers += [mean_text(_mean(mine)), mean_text(_difference(mine, full), sign=True)]
    per_token = [record["scores"]["log_prob"] / record["reference_tokens"] for record in group]
    numbers.append(f"{fmean(per_token):.3f}")
    numbers += [f"{fmean(record['scores'][name] for record in group):.0%}" for name in ("score", "found")]
    recalls = [record for record in group if "recall" in record]
    numbers.append(f"{_MILLI * fmean(r['seconds']['recall'] for r in recalls):.0f} ms" if recalls else "-")
    numbers.append(size(fmean(record["recall"]["bytes"] for record in recalls)) if recalls else "-")
    numbers.append(f"{_MILLI * fmean(record['seconds']['question'] for record in group):.0f} ms")
    line = [Cell(kind), Cell(f"{context:,}", number=True), *map(Cell, texts)]
    return line + [Cell(text, number=True) for text in numbers]


def _mean(records: Sequence[Record]) -> Mean | None:
    return mean_of([record["scores"]["log_prob"] for record in records]) if records else None


def _difference(records: Sequence[Record], full: dict[tuple[str, Any], Record]) -> Mean | None:
    if not records or records[0]["setting"]["method"] == FULL:
        return None
    pairs = [(record, full.get((sample_key(record), record["setting"].get("kv_type")))) for record in records]
    both = [(ours["scores"]["log_prob"], theirs["scores"]["log_prob"]) for ours, theirs in pairs if theirs is not None]
    return difference_of([ours for ours, _ in both], [theirs for _, theirs in both]) if both else None
