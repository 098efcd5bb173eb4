"""The tables of many questions about one text: their results are those of the commands beside them."""

from __future__ import annotations

import shlex

import pytest

from lib.docs import turns
from restkv_local.cli.eval import main as program
from restkv_local.eval.results import read_results

FILES = {name: command for files in turns.COMMANDS.values() for name, command in files.items()}


@pytest.mark.parametrize("name", list(FILES))
def test_committed_results_are_those_of_the_commands(name: str) -> None:
    words = shlex.split(FILES[name])
    values = program.main.commands[words[1]].make_context(words[1], words[2:]).params  # raises for what cannot be
    records = read_results([turns.FOLDER / f"{name}.jsonl"])
    assert {record["context"] for record in records} == set(values["contexts"])
    assert {record["setting"]["budget"] for record in records} == {None, *values["budgets"]}
    assert {record["task"] for record in records} == {f"turns {mode}" for mode in values["modes"]}
    n_turns = len(values["kinds"]) * values["samples"] * values["questions"]
    n_rows = 1 + sum(len(values["methods"]) for way in values["ways"] if way != "full")  # the full cache always runs
    assert len(records) == n_turns * n_rows * len(values["modes"])
    setting = {name: values[name] for name in ("recall_every", "recall_below")}
    found = [record["setting"]["evict"] for record in records if record["setting"]["name"].startswith("recall")]
    assert all({name: evict.get(name, 0) for name in setting} == setting for evict in found)


@pytest.mark.parametrize("block", list(turns.COMMANDS))
def test_every_row_is_shown_and_its_command_too(block: str) -> None:
    text = turns.block(block)()
    for name, command in turns.COMMANDS[block].items():
        rows = {record["setting"]["name"] for record in read_results([turns.FOLDER / f"{name}.jsonl"])}
        assert len(rows) >= 2 and all(f" {row} |" in text for row in rows), "losing rows too"
        assert command in turns.commands()
