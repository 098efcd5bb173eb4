"""restkv-eval as a program: options, runs on a tiny model, going on after a stop, reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from eval_models import Stops, evaluate, lines, tiny  # noqa: F401
from restkv_local.errors import RestkvError
from restkv_local.eval.report import html_page, markdown
from restkv_local.eval.report.best import standings
from restkv_local.eval.report.charts import ticks
from restkv_local.eval.report.grids import grids
from restkv_local.eval.results import identity, read_results
from restkv_local.eval.summary import rows

NIAH = ("niah", "--contexts", "1024", "--budgets", "64", "--reserve", "128", "--depths", "2", "--methods",
        "restkv,streamingllm", "--kinds", "passkey,several")  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["niah", "--methods", "best"], "'best' is not a method"),
        (["niah", "--methods", "restkv:kernel=2"], "kernel must be odd"),
        (["niah", "--budgets", "many"], "is not a size"),
        (["niah", "--budgets", "3"], "budget must be"),
        (["niah", "--prefill", "fast"], "'fast' is not one of stream, exact, guided"),
        (["niah", "--contexts", "1024,x"], "'x' is not a whole number"),
        (["niah", "--seeds", "-1"], "'-1' is not a whole number"),
        (["niah", "--samples", "0"], "--samples"),
        (["niah", "--main-gpu", "0", "--tensor-split", "1,1"], "give one"),
        (["ppl", "--main-gpu", "16"], "--main-gpu"),
        (["ruler", "--tensor-split", "0,0"], "one of them above 0"),
        (["niah", "--kinds", "hay"], "'hay' is not one of"),
        (["niah", "--resume"], "name it with --out"),
        (["fidelity", "--text", "/nowhere.txt"], "does not exist"),
        (["fidelity", "--continuation", "0"], "--continuation"),
        (["ruler", "--tasks", "niah"], "'niah' is not one of"),
        (["ruler", "--data", "/nowhere"], "does not exist"),
        (["longbench"], "name their folder with --data"),
        (["longbench", "--data", "."], "narrativeqa"),
        (["infinitebench", "--tasks", "math_calc"], "math_calc"),
        (["reason"], "name their folder with --data"),
        (["reason", "--data", ".", "--tasks", "humaneval"], "run"),
        (["report"], "RESULTS"),
        (["report", "/nowhere", "--html", "x.html"], "does not exist"),
        (["report", "."], "nothing to write"),
        (["report", ".", "--html", "/nowhere/at/all.html"], "does not exist"),
    ],
)
def test_bad_options_give_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = evaluate(*arguments)
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_help_states_the_convention() -> None:
    for command in ("niah", "fidelity", "ppl", "report"):
        assert "group x B cells" in " ".join(evaluate(command, "--help").stdout.split())


class Refuses:
    """In place of an engine: keeps what it is called with, and makes none."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.options.append(options)
        raise RestkvError("no engine here")


@pytest.mark.parametrize("command", ["niah", "ruler", "infinitebench", "fidelity", "ppl"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--main-gpu 1", {"split_mode": 0, "main_gpu": 1}),
        ("--tensor-split 3,1", {"tensor_split": [3.0, 1.0]}),
        ("", {}),
    ],
)
def test_gpus_reach_the_engine(command: str, arguments: str, expected: dict[str, Any], tmp_path: Path) -> None:
    refuses = Refuses()
    words = [command, "--gpu-layers", "9", *arguments.split(), "--out", tmp_path / "out"]
    result = evaluate(*words, engine=refuses)
    assert result.exit_code == 1 and "no engine here" in result.stderr
    (options,) = refuses.options
    names = ("n_gpu_layers", "split_mode", "main_gpu", "tensor_split")
    assert {name: options[name] for name in names if name in options} == {"n_gpu_layers": 9, **expected}


@pytest.mark.parametrize("prefill", ["exact", "stream", "guided"])
def test_a_stopped_run_goes_on_to_the_same_file(tiny: Path, tmp_path: Path, prefill: str) -> None:  # noqa: F811
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = (*NIAH, "--model", tiny, "--prefill", prefill)
    result = evaluate(*words, "--out", whole, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["results"] == summary["new"] == 3 * 4
    assert [row["name"] for row in summary["rows"]] == ["full", "restkv", "streamingllm"]
    assert summary["rows"][1]["differences"]["log_prob"]["n"] == 4
    stopped = evaluate(*words, "--out", parts, engine=Stops(7))
    assert stopped.exit_code == 130 and "go on with --out" in " ".join(stopped.stderr.split())
    file = parts / "niah.jsonl"
    assert len(lines(file)) == 7
    with open(file, "a", encoding="utf-8") as stream:
        stream.write('{"schema": 1, "task": "ni')
    refused = evaluate(*words, "--out", parts)
    assert refused.exit_code == 1 and "is not empty" in refused.stderr
    resumed = evaluate(*words, "--out", parts, "--resume", "--json")
    assert resumed.exit_code == 0 and "torn" in resumed.stderr, resumed.output
    assert json.loads(resumed.stdout)["new"] == 12 - 7
    assert lines(file) == lines(whole / "niah.jsonl")
    again = evaluate(*words, "--out", parts, "--resume", "--json", engine=Stops(0))
    assert again.exit_code == 0 and json.loads(again.stdout)["new"] == 0


def test_fidelity_of_a_stopped_run(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ("fidelity", "--contexts", "300", "--budgets", "64,4096", "--reserve", "128", "--samples", "1", "--model",
             tiny, "--continuation", "20", "--methods", "restkv,random", "--kinds", "prose,code")  # fmt: skip
    assert evaluate(*words, "--out", tmp_path / "whole").exit_code == 0
    # The full cache's two readings are done, and one more; its figures are gone when the run goes on.
    assert evaluate(*words, "--out", tmp_path / "parts", engine=Stops(3)).exit_code == 130
    resumed = evaluate(*words, "--out", tmp_path / "parts", "--resume")
    assert resumed.exit_code == 0, resumed.output
    found = lines(tmp_path / "whole" / "fidelity.jsonl")
    assert lines(tmp_path / "parts" / "fidelity.jsonl") == found
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["fidelity.jsonl"]
    for record in found:
        kl, top1 = record["scores"]["kl"], record["scores"]["top1"]
        if record["setting"]["budget"] in (None, 4096):  # nothing was evicted
            assert (kl, top1) == (0.0, 1.0)
        else:
            assert kl > 1e-4 and record["cache"]["cells"] == 64


@pytest.mark.parametrize(
    "words, read", [((), {"t.txt"}), (("--kinds", "prose"), {"t.txt", "prose"})], ids=["file", "file and kind"]
)
def test_files_and_built_in_texts(tiny: Path, tmp_path: Path, words: tuple[str, ...], read: set[str]) -> None:  # noqa: F811
    file = tmp_path / "t.txt"
    file.write_text("The sea was calm and the night was long. " * 40)
    result = evaluate("fidelity", "--contexts", "200", "--methods", "full", "--samples", "1", "--continuation", "8",
                      "--text", file, *words, "--model", tiny, "--out", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert {record["labels"]["kind"] for record in lines(tmp_path / "out" / "fidelity.jsonl")} == read


def test_perplexity_along_a_text(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "t.txt"
    file.write_text("The sea was calm and the night was long. " * 40)
    words = ("ppl", "--contexts", "500", "--budgets", "64", "--reserve", "64", "--methods", "restkv", "--windows", "4",
             "--text", file, "--model", tiny)  # fmt: skip
    result = evaluate(*words, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    full, evicted = lines(tmp_path / "out" / "ppl.jsonl")
    assert [w["from"] for w in full["windows"]] == [1, 126, 251, 375]
    assert full["windows"][0]["nll"] == pytest.approx(evicted["windows"][0]["nll"], abs=5e-2)  # hardly evicted yet
    assert full["scores"]["nll"] != evicted["scores"]["nll"]
    assert (full["cache"]["cells"], evicted["cache"]["capacity"]) == (499, 128)
    refused = evaluate(*words, "--prefill", "exact", "--out", tmp_path / "other")
    assert refused.exit_code == 1 and "only --prefill stream" in refused.stderr
    text = html_page(read_results([tmp_path / "out"]))
    assert "Loss along the text" in text


@pytest.mark.usefixtures("native")
def test_the_embedded_model_finds_a_needle(tmp_path: Path) -> None:
    result = evaluate("niah", "--contexts", "512", "--budgets", "128", "--methods", "restkv", "--kinds", "passkey",
                      "--depths", "1", "--out", tmp_path, "--threads", "2")  # fmt: skip
    assert result.exit_code == 0, result.output
    full, restkv = lines(tmp_path / "niah.jsonl")
    assert full["scores"]["score"] == restkv["scores"]["score"] == 1.0
    assert full["scores"]["log_prob"] > -1 and restkv["cache"]["cells"] == 128
    assert full["model"]["group"] == 3 and full["references"][0] in full["answer"]


# ---- the report -----------------------------------------------------------------------------------


def _record(method: str, sample: str, log_prob: float, **changes: Any) -> dict[str, Any]:
    full = method == "full"
    record = {
        "task": "niah", "options": {}, "context": 512, "seed": 0, "sample": sample,
        "labels": {"kind": "passkey", "depth": 0.5},
        "setting": {"name": method, "method": method, "budget": None if full else 64,
                    "prefill": None if full else "exact", "kv_type": "f16", "evict": {"reserve": 128}},
        "model": {"name": "m.gguf", "bytes": 1, "group": 3}, "cache": {"bytes": 5e6, "cells": 64},
        "scores": {"score": 1.0, "log_prob": log_prob}, "run": {"date": "2026-01-02T03:04:05+00:00"},
    }  # fmt: skip
    return record | changes


def _some() -> list[dict[str, Any]]:
    values = {"full": (-1.0, -1.1, -1.2), "restkv": (-1.1, -1.2, -1.3), "random": (-9.0, -9.1, -9.3)}
    return [_record(m, str(i), value) for m, found in values.items() for i, value in enumerate(found)]


def test_standing_among_rows_of_the_same_memory() -> None:
    close = [_record("snapkv", str(i), value) for i, value in enumerate((-1.15, -1.1, -1.4))]
    found = rows(_some() + close)
    marks = {found[number].name: standing.mark for number, standing in standings(found, "log_prob").items()}
    assert marks == {"restkv": "best", "snapkv": "level", "random": ""}


def test_page_is_one_file_and_shows_losing_rows() -> None:
    page = html_page(_some())
    assert "random" in page and "-9.133" in page and "<svg" in page and "prefers-color-scheme:dark" in page
    assert not re.search(r"https?:|<script|<link|@import|url\(|src=", page)
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)  # well-formed
    assert "group x B cells here" in page and "m.gguf: group 3" in page
    table = markdown(_some())
    assert table.index("| restkv |") < table.index("| random |")  # the better first
    assert "**-1.200 (" in table and "| best |" in table


def test_page_escapes_what_comes_from_results() -> None:
    evil = "<img src=x onerror=alert(1)>|`x`"
    records = [_record("restkv", "0", -1.0, model={"name": evil, "bytes": 1, "group": 2}, task=evil)]
    records[0]["setting"] |= {"name": evil, "budget": evil}
    records[0]["labels"] = {"kind": evil, "depth": 0.5}
    records[0]["run"] = {"device": {evil: evil}, "versions": {"python": evil}, "backend": evil, "date": evil}
    records.append({**records[0], "sample": "1", "windows": [{"from": 1, "to": 2, "nll": 1.0}],
                    "labels": {"kind": "other"}})  # fmt: skip
    for text in (html_page(records), markdown(records)):
        assert "<img" not in text and "&lt;img" in text
    assert "alert(1)&gt;\\|" in markdown(records)


def test_report_writes_both_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in _some()) + '{"torn')
    html, table = tmp_path / "r.html", tmp_path / "r.md"
    result = evaluate("report", tmp_path, "--html", html, "--markdown", table)
    assert result.exit_code == 0 and "9 results" in result.stderr and "torn" in result.stderr
    assert html.read_text().startswith("<!doctype html>") and "### niah, m.gguf" in table.read_text()
    (tmp_path / "a.jsonl").write_text("{}\n")
    broken = evaluate("report", tmp_path, "--html", html)
    assert broken.exit_code == 1 and "line 1" in broken.stderr


def test_grid_of_methods_and_budgets() -> None:
    more = [_record("snapkv", str(i), value) for i, value in enumerate((-1.15, -1.1, -1.4))]
    for record in more:
        record["setting"] |= {"budget": 512}
    found = rows(_some() + more)
    (grid,) = grids(found, "log_prob")
    assert grid.budgets == (64, 512)
    assert grid.full is not None and found[grid.full].full
    for name, cells in grid.lines:
        for budget, cell in zip(grid.budgets, cells, strict=True):
            like = [row for row in found if (row.name, row.budget) == (name, budget)]
            assert (cell is None) == (not like) and (cell is None or found[cell.number] is like[0])
    assert {name for name, cells in grid.lines for cell in cells if cell and cell.best} == {"restkv", "snapkv"}
    text = markdown(_some() + more)
    assert re.search(r"^\| restkv \| .*\*\*-1.200 .* \| - \|$", text, re.MULTILINE)


def test_compact_results_say_the_same_in_fewer_bytes(tmp_path: Path) -> None:
    records = [record | {"answer": "a", "references": ["b"]} for record in _some()]
    records[3]["labels"] = {"kind": "other", "depth": 0.5}
    whole, small = tmp_path / "out" / "niah.jsonl", tmp_path / "small.jsonl"
    whole.parent.mkdir()
    whole.write_text("".join(json.dumps(record) + "\n" for record in records))
    result = evaluate("report", whole, "--compact", small)
    assert result.exit_code == 0, result.output
    assert small.stat().st_size < whole.stat().st_size / 2 and '"answer"' not in small.read_text()
    before, after = read_results([whole]), read_results([small])
    assert markdown(before) == markdown(after) and html_page(before) == html_page(after)
    assert [identity(record) for record in before] == [identity(record) for record in after]
    small.rename(whole)
    refused = evaluate("niah", "--out", whole.parent, "--resume", "--methods", "fifo", "--contexts", "300")
    assert refused.exit_code == 1 and "is compact" in refused.stderr


def test_marks_of_an_axis() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-12.3, -0.4) == [-12, -10, -8, -6, -4, -2]
    assert ticks(3, 3) == [3]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("family", "tasks", "context"),
    [("ruler", ("niah_single_1", "vt"), "704"), ("infinitebench", ("passkey", "code_run"), "512")],
)
def test_a_family_runs_and_names_its_tasks(family: str, tasks: tuple[str, ...], context: str, tmp_path: Path) -> None:
    """On the embedded model: the tiny one reads bytes, for which these texts are long."""
    words = (family, "--tasks", ",".join(tasks), "--contexts", context, "--budgets", "96", "--reserve", "160")
    result = evaluate(*words, "--methods", "snapkv", "--samples", "1", "--threads", "2", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    records = read_results([tmp_path / "r"])
    assert {record["task"] for record in records} == set(tasks)
    assert len(records) == 2 * len(tasks)  # the full cache and one method
    assert all(0.0 <= record["scores"]["score"] <= 1.0 for record in records)


@pytest.mark.usefixtures("native")
def test_reasoning_reads_a_local_file(tmp_path: Path) -> None:
    (tmp_path / "multiarith.jsonl").write_text(
        json.dumps({"sQuestion": "Ann has 2 apples and buys 3. How many has she?", "lSolutions": [5.0]}) + "\n"
    )
    words = ("reason", "--tasks", "multiarith", "--data", tmp_path, "--contexts", "1024", "--budgets", "96")
    result = evaluate(*words, "--methods", "snapkv", "--samples", "1", "--threads", "2", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    records = read_results([tmp_path / "r"])
    assert [record["references"] for record in records] == [["5"]] * 2
