"""docs/quality.md and docs/quality-grids.md: what their tables say of results, and that the results are those of the
commands they name."""

from __future__ import annotations

import json
import re
import shlex
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import docs
from lib.docs import quality
from lib.setup.source import ROOT
from restkv_local.cli.eval import main as program
from restkv_local.eval.variant import parse_variants


def _record(
    task: str, name: str, sample: str, scores: dict[str, float], kind: str = "", budget: int = 64
) -> dict[str, Any]:
    full = name == "full"
    return {
        "task": task, "options": {}, "context": 512, "seed": 0, "sample": sample, "labels": {"kind": kind},
        "setting": {"name": name, "method": name, "budget": None if full else budget,
                    "prefill": None if full else "exact", "kv_type": "f16", "evict": {"reserve": 128}},
        "model": {"name": "m.gguf", "bytes": 1, "group": 3}, "cache": {"bytes": 5e6, "cells": budget},
        "scores": scores,
        "run": {"date": "2026-01-02T03:04:05+00:00", "threads": 1, "versions": {"python": "3"},
                "device": {"cpu": "a cpu", "cores": 2}},
    }  # fmt: skip


def _write(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(quality, "FOLDER", tmp_path)
    return tmp_path


def test_what_was_not_measured_says_so(folder: Path) -> None:
    for text in (quality.block("niah")(), quality.ruler(), quality.standing()):
        assert text.startswith("Not measured yet")


def test_standing_says_where_restkv_wins_and_where_it_loses(folder: Path) -> None:
    kl = {64: {"restkv": (0.1, 0.2, 0.3), "snapkv": (0.2, 0.3, 0.41)},
          128: {"restkv": (0.2, 0.3, 0.41), "snapkv": (0.1, 0.2, 0.3)},
          256: {"restkv": (0.1, 0.2, 0.5), "snapkv": (0.2, 0.15, 0.3)}}  # fmt: skip
    _write(folder, "fidelity", [
        _record("fidelity", name, str(i), {"kl": value}, budget=budget)
        for budget, names in kl.items() for name, values in names.items() for i, value in enumerate(values)
    ])  # fmt: skip
    # The full cache cannot do kind "hard", where ReST-KV seems to lose.
    needles = []
    for kind, score, ours in (("easy", 1.0, -1.0), ("hard", 0.0, -30.0)):
        for i in range(3):
            needles.append(_record("niah", "full", f"{kind}-{i}", {"score": score, "log_prob": -1.0}, kind))
            needles.append(_record("niah", "restkv", f"{kind}-{i}", {"score": 1.0, "log_prob": ours - 0.01 * i}, kind))
            needles.append(_record("niah", "fifo", f"{kind}-{i}", {"score": 0.0, "log_prob": -9.0 - 0.1 * i}, kind))
    _write(folder, "niah", needles)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in quality.standing().splitlines()[2:]]
    assert [(line[0].split(",")[0], line[2], line[3], line[-1]) for line in lines] == [
        ("fidelity", "64", "3", "best"), ("fidelity", "128", "3", "behind"), ("fidelity", "256", "3", "level"),
        ("niah", "64", "3", "best"),
    ]  # fmt: skip
    assert lines[1][5].startswith("snapkv 0.200") and lines[1][6].startswith("+0.103")


def test_ruler_says_what_the_full_cache_cannot_do(folder: Path) -> None:
    _write(folder, "ruler", [
        _record(task, name, "0", {"score": score})
        for task, name, score in (("vt", "full", 0.0), ("vt", "restkv", 0.0), ("qa", "full", 1.0))
    ])  # fmt: skip
    text = quality.ruler()
    assert "| `vt` | no | 1 | 0.000 | 0.000 |" in text and "| `qa` | yes | 1 | 1.000 | - |" in text


def test_main_grids_are_the_first_of_their_files(folder: Path) -> None:
    _write(folder, "fidelity", [
        _record("fidelity", name, f"s{i}", {"kl": kl + i / 10}, kind="code", budget=budget)
        for name, kl in (("full", 0.0), ("restkv", 0.2), ("snapkv", 0.4))
        for budget in ((64,) if name == "full" else (64, 128))
        for i in range(3)
    ])  # fmt: skip
    text = quality.in_short()
    assert text.startswith("Fidelity: KL(full, evicted), nats, 512 tokens, exact; full cache")
    assert "| method | budget 64 | budget 128 |" in text and "| snapkv | " in text
    assert text.endswith(quality.missing("needle-budgets")), "what was not measured says so"


def test_conclusions_and_grids_have_a_page_each() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in docs.pages()}
    short, grids = pages["quality.md"], pages["quality-grids.md"]
    assert len(short.splitlines()) <= 120
    assert short.split("\n\n")[1].startswith("One model of 135M, 2 to 12 samples"), "in its first sentence"
    blocks = {name: set(re.findall(r"<!-- generated: (quality [^>]+?) -->", text)) for name, text in pages.items()}
    assert blocks["quality.md"] == {"quality reading", "quality standing", "quality in short"}
    everything = {name for name in docs.BLOCKS if name.startswith("quality ")}
    assert blocks["quality-grids.md"] == everything - blocks["quality.md"]
    for name, text in (("quality.md", short), ("quality-grids.md", grids)):
        line = next(line for line in text.splitlines() if line.startswith("| restkv |"))
        changed, stale = docs.render(text.replace(line, "| restkv | 0.000 |", 1), name)
        assert changed == text and len(stale) == 1, "a grid that was changed by hand is found and written anew"


def test_samples_are_as_many_as_the_first_sentence_says() -> None:
    from restkv_local.eval.summary import part_of, rows

    counted: set[int] = set()
    for name in quality.COMMANDS:
        records = quality.load(name)
        able = quality._able(rows(records, by_part=True))
        # needles that the full cache cannot find are no part of a conclusion
        counted |= {row.n for row in rows([r for r in records if r["task"] != "niah" or part_of(r) in able])}
    text = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    assert f"{min(counted)} to {max(counted)} samples" in text


@pytest.mark.parametrize("name", list(quality.COMMANDS))
def test_committed_results_are_those_of_the_commands(name: str) -> None:
    words = shlex.split(quality.COMMANDS[name])
    context = program.main.commands[words[1]].make_context(words[1], words[2:])  # raises for what cannot be
    values = context.params
    names = [variant.name for variant in parse_variants(values["methods"])]
    allowed: set[tuple[Any, ...]] = set()
    for length in values["contexts"]:
        for seed in values["seeds"]:
            allowed.add((length, seed, "full"))
            for variant, budget, prefill in product(names, values["budgets"], values["prefills"]):
                allowed.add((length, seed, variant, budget, prefill))
    found = set()
    for record in quality.load(name):
        setting = record["setting"]
        key = (record["context"], record["seed"], setting["name"])
        found.add(key if setting["method"] == "full" else (*key, setting["budget"], setting["prefill"]))
    assert found <= allowed
