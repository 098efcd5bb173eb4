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
    assert {record["task"] for record in records} == {"turns kept", "turns fresh"}
    n_turns = len(values["kinds"]) * values["samples"] * values["questions"]
    n_rows = sum(1 if way == "full" else len(values["methods"]) for way in values["ways"])
    assert len(records) == n_turns * n_rows * len(values["modes"])


@pytest.mark.parametrize("block", list(turns.COMMANDS))
def test_every_row_is_shown_and_its_command_too(block: str) -> None:
    text = turns.block(block)()
    for name, command in turns.COMMANDS[block].items():
        rows = {record["setting"]["name"] for record in read_results([turns.FOLDER / f"{name}.jsonl"])}
        assert len(rows) >= 4 and all(f" {row} |" in text for row in rows), "losing rows too"
        assert command in turns.commands()
