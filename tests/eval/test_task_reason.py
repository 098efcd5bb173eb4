"""Reasoning tasks: official formats, worked examples, and code that is run only when allowed, inside limits."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import task_data as data
from restkv_local.errors import ConfigError
from restkv_local.eval import fit, reason
from restkv_local.eval.reason import humaneval, sandbox
from restkv_local.eval.sample import Sample, Task

posix = pytest.mark.skipif(os.name != "posix", reason="code is run only on Unix")


def task(name: str, folder: Path | None = None, run_code: bool = False) -> Task:
    return next(one for one in reason.tasks(folder, run_code) if one.name == name)


def draw(folder: Path, name: str, length: int = 3000, n: int = 5, run_code: bool = True) -> list[Sample]:
    return list(task(name, folder, run_code).samples(data.fake_count, length, n, 0))


def test_names_and_tasks_agree() -> None:
    assert [one.name for one in reason.tasks()] == list(reason.NAMES)


def test_gsm8k(tmp_path: Path) -> None:
    data.write_jsonl(tmp_path / "gsm8k.jsonl", [data.GSM8K])
    [sample] = draw(tmp_path, "gsm8k")
    assert sample.question == f"Question: {data.GSM8K['question']}" and sample.references == ("18",)
    assert sample.labels["shots"] == 0 and "<<" not in sample.context and sample.chat
    score = task("gsm8k").score
    assert score(sample, "He has 18 apples. The answer is 18.") == 1
    assert score(sample, "3 * 6 = 18, but the answer is 19") == 0
    assert score(sample, "") == 0


def test_worked_examples_fill_what_there_is(tmp_path: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        return {"question": f"What is {i} and 1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}

    data.write_jsonl(tmp_path / "gsm8k_test.jsonl", [row(500)])
    data.write_jsonl(tmp_path / "gsm8k_train.jsonl", [row(500), *map(row, range(40))])
    [sample] = draw(tmp_path, "gsm8k")
    assert sample.labels["shots"] in (7, 8) and sample.context.count("\nThe answer is ") == sample.labels["shots"]
    assert "What is 500" not in sample.context and "<<" not in sample.context
    assert draw(tmp_path, "gsm8k") == [sample]
    [short] = draw(tmp_path, "gsm8k", length=150)
    assert 0 < int(short.labels["shots"]) < 7 and fit.size(data.fake_count, short) <= 150
    with pytest.raises(ConfigError, match="reason gsm8k needs at least"):
        draw(tmp_path, "gsm8k", length=10)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("MultiArith.json", json.dumps([data.MULTIARITH], indent=1)),
        ("multiarith.jsonl", json.dumps({"question": data.MULTIARITH["sQuestion"], "final_ans": "49"})),
        ("multiarith.jsonl", json.dumps({"question": data.MULTIARITH["sQuestion"], "final_ans": 49})),
    ],
)
def test_multiarith(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    [sample] = draw(tmp_path, "multiarith")
    assert sample.references == ("49",) and "Lena had 9 boxes" in sample.question
    assert task("multiarith").score(sample, "so 49.0 pens") == 1 and task("multiarith").score(sample, "4") == 0


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge"])
def test_arc(tmp_path: Path, name: str) -> None:
    file = "ARC-Easy" if name == "arc_easy" else "ARC-Challenge"
    data.write_jsonl(tmp_path / f"{file}-Test.jsonl", [data.ARC])
    shown: Any = {**data.ARC, "question": {**data.ARC["question"], "stem": "Why?"}}
    data.write_jsonl(tmp_path / f"{file}-Train.jsonl", [shown])
    [sample] = draw(tmp_path, name)
    assert sample.question.endswith("What does a plant need?\nA. light\nB. iron\nC. wool")
    assert sample.labels["shots"] == 1 and sample.context.endswith("Answer: The answer is A.\n\n")
    assert task(name).score(sample, "The answer is A.") == 1 and task(name).score(sample, "B. iron") == 0


# ---- HumanEval ---------------------------------------------------------------------------------


def test_code_is_not_run_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data.write_jsonl(tmp_path / "HumanEval.jsonl", [data.HUMANEVAL])
    monkeypatch.setattr(sandbox, "run", lambda *_: pytest.fail("code was run"))
    with pytest.raises(ConfigError, match="only when that is allowed explicitly"):
        draw(tmp_path, "humaneval", run_code=False)
    [sample] = draw(tmp_path, "humaneval")
    with pytest.raises(ConfigError, match="only when that is allowed explicitly"):
        task("humaneval").score(sample, "    return 1")


@posix
def test_humaneval(tmp_path: Path) -> None:
    data.write_jsonl(tmp_path / "HumanEval.jsonl", [data.HUMANEVAL])
    [sample] = draw(tmp_path, "humaneval")
    assert sample.context + sample.question == data.HUMANEVAL["prompt"] and not sample.chat
    assert sample.question.startswith("def halve")
    score = task("humaneval", tmp_path, run_code=True).score
    assert score(sample, data.HUMANEVAL["canonical_solution"]) == 1
    assert score(sample, "    return math.floor(x / 2)\n\ndef more():\n    return (") == 1  # cut at the next piece
    assert score(sample, "    return x / 2") == 0
    assert score(sample, "    return (") == 0
    assert score(sample, "") == 0
    assert score(sample, "    exit(0)") == 0
    fenced = "Here it is:\n```python\ndef halve(x):\n    return math.floor(x / 2)\n```\nDone."
    assert score(sample, fenced) == 1
    with pytest.raises(ConfigError, match="its own samples"):
        score(Sample("", "", "", (), 1), "x")


def test_completion_keeps_what_belongs_to_the_function() -> None:
    assert humaneval.completion("    return 1\n\n\ndef f():", "P:\n", "halve") == "P:\n    return 1\n\n"
    assert humaneval.completion("    return 1", "P:\n", "halve") == "P:\n    return 1"


@posix
@pytest.mark.parametrize(
    ("program", "ends_well"),
    [
        ("x = 'é漢'", True),
        ("print('much ' * 10000)", True),
        ("assert False", False),
        ("raise SystemExit(0)", False),
        ("import os; os._exit(0)", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", False),
        ("(", False),
        ("x = bytearray(3 * 2**30)", False),
        ("open('f', 'wb').write(b'x' * 5 * 2**20)", False),
        ("import sys; assert sys.stdin.read() == ''", True),
        ("import os; assert 'RESTKV_SECRET' not in os.environ and os.environ['HOME'] == os.getcwd()", True),
        ("import os; os.mkdir('d'); open('d/f', 'w').close(); os.chmod('d', 0)", True),
    ],
)
def test_sandbox(program: str, ends_well: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if sys.platform == "darwin" and "bytearray" in program:
        pytest.skip("macOS does not limit address space")
    monkeypatch.setenv("RESTKV_SECRET", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert sandbox.run(program, sandbox.Limits(seconds=5)) is ends_well
    assert not list(tmp_path.iterdir())  # nothing is left behind


@posix
@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"])
def test_sandbox_ends_what_does_not_end(program: str) -> None:
    start = time.monotonic()
    assert not sandbox.run(program, sandbox.Limits(seconds=1))
    assert time.monotonic() - start < 10


@posix
def test_sandbox_ends_children_too(tmp_path: Path) -> None:
    """A child that outlives the program is ended with it; where processes are limited there is none."""
    mark = tmp_path / "mark"
    child = f"time.sleep(1.5); open({str(mark)!r}, 'w').close(); os._exit(0)"
    program = f"import os, time\nif os.fork() == 0:\n    {child}\n"
    sandbox.run(program, sandbox.Limits(seconds=5))
    time.sleep(2.5)
    assert not mark.exists()


@posix
def test_sandbox_has_no_network_where_the_system_allows() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2).close()"
        assert sandbox.run(program) is not sandbox.network_is_off()


def test_sandbox_refuses_where_it_has_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "supported", lambda: False)
    with pytest.raises(ConfigError, match="only where a process can be limited"):
        sandbox.run("x = 1")
