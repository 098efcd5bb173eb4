"""Local files are hostile input: every fault is one ConfigError that names file and line, for every reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import task_data as data
from restkv_local.errors import ConfigError
from restkv_local.eval import files, infinitebench, longbench, reason, ruler
from restkv_local.eval.sample import Task

GOOD = '{"context": "x", "input": "?", "answers": ["y"]}\n'


def named(tasks: list[Task], name: str) -> Task:
    return next(task for task in tasks if task.name == name)


def draw(task: Task, n: int = 10, length: int = 2000) -> Any:
    return task.samples(data.fake_count, length, n, 0)


def check(error: pytest.ExceptionInfo[ConfigError], *parts: str) -> None:
    text = str(error.value)
    assert all(part in text for part in parts), text
    assert "\n" not in text and len(text) < 300


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b'{"context": "x", \n', ("line 1", "not JSON")),
        (GOOD.encode() + b"\n" + b"{bad}\n", ("line 3", "not JSON")),
        (GOOD.encode() + b'["a"]\n', ("line 2", "an object was expected; got a list")),
        (GOOD.encode() + b"7\n", ("line 2", "got a number")),
        (GOOD.encode() + b'{"a": NaN}\n', ("line 2", "NaN is not JSON")),
        (b"", ("the file is empty",)),
        (b"\n  \n", ("the file is empty",)),
        (GOOD.encode() + b'{"context": "\xff"}\n', ("line 2", "not UTF-8")),
        (GOOD.encode() + b"[" * 200000 + b"\n", ("line 2", "nested too deeply")),
        (b'{"a": ' + b"9" * 5000 + b"}\n", ("line 1", "too many digits")),
        (GOOD.encode() + b'{"context": "x", "answers": ["y"]}\n', ("line 2", "the field 'input' is missing")),
        (GOOD.encode() + GOOD.replace('"?"', "3").encode(), ("line 2", "'input' must be text; got a number")),
        (GOOD.replace('["y"]', '"y"').encode(), ("line 1", "'answers' must be a list; got text")),
        (GOOD.replace('["y"]', "[]").encode(), ("line 1", "'answers' must have at least 1")),
        (GOOD.replace('["y"]', "[null]").encode(), ("line 1", "'answers' must be text; got null")),
        (GOOD.replace('"x"', '"\\ud800"').encode(), ("line 1", "surrogate")),
    ],
)
def test_malformed_lines(tmp_path: Path, content: bytes, parts: tuple[str, ...]) -> None:
    (tmp_path / "narrativeqa.jsonl").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        draw(named(longbench.tasks(tmp_path), "narrativeqa"))
    check(error, "narrativeqa.jsonl", *parts)


def test_a_fault_is_found_in_a_line_that_is_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "narrativeqa.jsonl").write_text(GOOD * 50 + "{}\n")
    with pytest.raises(ConfigError) as error:
        draw(named(longbench.tasks(tmp_path), "narrativeqa"), n=1)
    check(error, "line 51")


def test_a_huge_line_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LINE_MAX", 100)
    (tmp_path / "narrativeqa.jsonl").write_text(GOOD + '{"context": "' + "x" * 1000)
    with pytest.raises(ConfigError) as error:
        draw(named(longbench.tasks(tmp_path), "narrativeqa"))
    check(error, "narrativeqa.jsonl, line 2: longer than")


def test_a_large_file_of_one_value_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "JSON_MAX", 100)
    (tmp_path / "squad.json").write_text(json.dumps(data.squad()))
    with pytest.raises(ConfigError) as error:
        draw(named(ruler.tasks(tmp_path), "qa_1"))
    check(error, "squad.json: larger than")


def test_byte_order_mark_and_line_ends_of_windows(tmp_path: Path) -> None:
    (tmp_path / "narrativeqa.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode() * 2)
    assert len(draw(named(longbench.tasks(tmp_path), "narrativeqa"))) == 2


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("squad.json", lambda top: top.pop("data"), ("squad.json", "'data'")),
        ("squad.json", lambda top: top.update(data=[]), ("squad.json", "at least 1")),
        ("squad.json", lambda top: top["data"][0].pop("paragraphs"), ("squad.json: data[0]", "'paragraphs'")),
        (
            "squad.json",
            lambda top: top["data"][0]["paragraphs"][0]["qas"][0].update(answers=[]),
            ("squad.json: data[0]: paragraphs[0]: qas[0]", "'answers'"),
        ),
        ("hotpotqa.json", lambda top: top[1].pop("answer"), ("hotpotqa.json: list[1]", "'answer'")),
        ("hotpotqa.json", lambda top: top[1].update(context=["x"]), ("hotpotqa.json: list[1]", "context[0]")),
        ("hotpotqa.json", lambda top: top[0]["context"][0].__setitem__(1, [3]), ("list[0]: context[0]", "sentences")),
    ],
)
def test_malformed_question_files(
    tmp_path: Path, name: str, change: Callable[[Any], Any], parts: tuple[str, ...]
) -> None:
    top: Any = data.squad() if name == "squad.json" else data.hotpotqa()
    change(top)
    (tmp_path / name).write_text(json.dumps(top))
    with pytest.raises(ConfigError) as error:
        draw(named(ruler.tasks(tmp_path), "qa_1" if name == "squad.json" else "qa_2"))
    check(error, *parts)


def test_json_error_in_a_long_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "squad.json").write_text('{\n"data": [\n,]}')
    with pytest.raises(ConfigError) as error:
        draw(named(ruler.tasks(tmp_path), "qa_1"))
    check(error, "squad.json, line 3: not JSON")


def test_questions_without_any_answer(tmp_path: Path) -> None:
    top = data.squad()
    for article in top["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                question["is_impossible"] = True
    (tmp_path / "squad.json").write_text(json.dumps(top))
    with pytest.raises(ConfigError, match="no question has an answer"):
        draw(named(ruler.tasks(tmp_path), "qa_1"))


@pytest.mark.parametrize(
    ("name", "row", "parts"),
    [
        ("longbook_choice_eng", data.infinite_row(options=["Anna"]), ("'options' must have at least 4",)),
        ("longbook_choice_eng", data.infinite_row(answer=["Emma"]), ("'answer' is none of the first four options",)),
        ("longbook_qa_eng", data.infinite_row(answer=[]), ("'answer' is empty",)),
        ("longbook_qa_eng", data.infinite_row(answer=[True]), ("'answer' must be text; got true or false",)),
        ("math_calc", data.infinite_row(context=None), ("'context' must be text; got null",)),
    ],
)
def test_malformed_infinitebench(tmp_path: Path, name: str, row: dict[str, Any], parts: tuple[str, ...]) -> None:
    data.write_jsonl(tmp_path / f"{name}.jsonl", [row])
    with pytest.raises(ConfigError) as error:
        draw(named(infinitebench.tasks(tmp_path), name))
    check(error, f"{name}.jsonl, line 1", *parts)


@pytest.mark.parametrize(
    ("task", "file", "row", "parts"),
    [
        ("gsm8k", "gsm8k.jsonl", {**data.GSM8K, "answer": "18"}, ("'####' and a number",)),
        ("gsm8k", "gsm8k.jsonl", {**data.GSM8K, "answer": "#### many"}, ("'####' and a number",)),
        ("multiarith", "multiarith.jsonl", {"question": "?", "final_ans": "x"}, ("'x' is no number",)),
        ("multiarith", "multiarith.jsonl", {**data.MULTIARITH, "lSolutions": []}, ("'lSolutions' is empty",)),
        ("arc_easy", "arc_easy.jsonl", {**data.ARC, "answerKey": "E"}, ("'answerKey' is 'E'",)),
        ("arc_easy", "arc_easy.jsonl", {**data.ARC, "question": "?"}, ("'question' must be an object; got text",)),
        ("humaneval", "HumanEval.jsonl", {**data.HUMANEVAL, "entry_point": "x)"}, ("no name of a function",)),
        ("humaneval", "HumanEval.jsonl", {"task_id": "0"}, ("is missing",)),
    ],
)
def test_malformed_reason(
    tmp_path: Path, task: str, file: str, row: dict[str, Any], parts: tuple[str, ...]
) -> None:
    data.write_jsonl(tmp_path / file, [row])
    with pytest.raises(ConfigError) as error:
        draw(named(reason.tasks(tmp_path, run_code=True), task))
    check(error, f"{file}, line 1", *parts)


def test_a_list_names_its_item(tmp_path: Path) -> None:
    (tmp_path / "MultiArith.json").write_text(json.dumps([data.MULTIARITH, {"sQuestion": 3}]))
    with pytest.raises(ConfigError) as error:
        draw(named(reason.tasks(tmp_path), "multiarith"))
    check(error, "MultiArith.json, item 2", "'sQuestion' must be text; got a number")
    (tmp_path / "MultiArith.json").write_text("[]")
    with pytest.raises(ConfigError, match="the list is empty"):
        draw(named(reason.tasks(tmp_path), "multiarith"))


@pytest.mark.parametrize("family", [ruler, longbench, infinitebench, reason])
def test_a_missing_file_is_named(tmp_path: Path, family: Any) -> None:
    options = {"run_code": True} if family is reason else {}
    local = [(about.name, about.data) for about in family.ABOUT if not about.data.startswith("generated")]
    assert local
    for name, _ in local:
        for folder, said in ((None, "give the folder"), (tmp_path, "in '"), (tmp_path / "no", "does not exist")):
            with pytest.raises(ConfigError) as error:
                draw(named(family.tasks(folder, **options), name))
            check(error, said)


def test_choose_is_fair_and_the_same_every_time() -> None:
    first = files.choose(range(1000), 10, "seed")
    assert first == files.choose(range(1000), 10, "seed") == sorted(first)
    assert first != files.choose(range(1000), 10, "other")
    assert files.choose(range(5), 10, "seed") == [0, 1, 2, 3, 4]
    hits = [0] * 10
    for seed in range(600):
        for item in files.choose(range(10), 3, str(seed)):
            hits[item] += 1
    assert all(130 < n < 230 for n in hits), hits  # 180 expected, deviation about 11


def test_essay_file_faults(tmp_path: Path) -> None:
    (tmp_path / "essay.txt").write_bytes(b"one.\ntwo \xe9.\n")
    with pytest.raises(ConfigError) as error:
        draw(named(ruler.tasks(tmp_path), "niah_single_2"))
    check(error, "essay.txt, line 2: not UTF-8")
    with pytest.raises(ConfigError, match="does not exist"):
        draw(named(ruler.tasks(essay=tmp_path / "none.txt"), "niah_single_2"))
