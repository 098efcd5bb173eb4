"""tools/gpu_check.py without a device: how steps fail, what the file says; one short run on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

import gpu_check
from lib.device import place, probe, steps
from lib.device.run import FAILED, OK, SKIPPED, Run
from lib.docs import devices, results
from lib.setup import source, venv
from lib.setup.progress import SetupError
from programs import program

# ---- steps -------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "out.json", tmp_path / "logs", {"finished": False}, os.environ, tmp_path)


def saved(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.target.read_text())
    return found


def code(text: str) -> list[str]:
    return [sys.executable, "-c", text, "{out}"]


WRITE = "import sys; open(sys.argv[1], 'w').write('{\"x\": 3}')"


def test_a_step_that_fails_does_not_stop_the_rest(run: Run) -> None:
    run.command("good", code(WRITE), limit=60, judge=lambda result: (result["x"] == 3, f"x is {result['x']}"))
    run.command("exit", code("print('a line'); raise SystemExit('broken for a reason')"), limit=60)
    run.command("nothing", code("pass"), limit=60)
    run.command("signal", code("import os; os.kill(os.getpid(), 9)"), limit=60)
    run.command("judged", code(WRITE), limit=60, judge=lambda result: (False, "x is wrong"))
    run.command("judge", code(WRITE), limit=60, judge=lambda result: result["y"])
    run.command("missing", ["/no/such/program"], limit=60)
    run.skip("left out", "no reason")
    run.command("last", code(WRITE), limit=60)
    said = {step["name"]: step for step in saved(run)["steps"]}
    assert [step["status"] for step in said.values()] == [OK, *[FAILED] * 6, SKIPPED, OK]
    assert said["good"]["result"] == {"x": 3} and said["good"]["summary"] == "x is 3" and not said["good"]["log"]
    assert said["exit"]["reason"] == "exit code 1: broken for a reason" and "a line" in said["exit"]["log"]
    assert "no result" in said["nothing"]["reason"]
    assert said["signal"]["reason"] == "it was ended by SIGKILL"
    assert said["judged"]["summary"] == "x is wrong" and said["judged"]["result"] == {"x": 3}
    assert said["judge"]["reason"] == "KeyError: 'y'"
    assert "FileNotFoundError" in said["missing"]["reason"]
    assert [step.name for step in run.failed] == ["exit", "nothing", "signal", "judged", "judge", "missing"]
    run.finish("a verdict")
    assert saved(run)["verdict"] == "a verdict" and saved(run)["ok"] is False and saved(run)["finished"] is True


def test_a_figure_of_a_failed_program_is_kept(run: Run) -> None:
    step = run.command("tests", code(f"{WRITE}; sys.exit(1)"), limit=60, judge=lambda result: (True, "x"))
    assert step.status == FAILED and step.result == {"x": 3} and run.result("tests") is None


@pytest.mark.skipif(os.name == "nt", reason="needs process groups")
def test_a_step_that_takes_too_long_ends_with_all_it_started(run: Run, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    start = time.monotonic()
    step = run.command("slow", code(parent), limit=1)
    assert step.status == FAILED and step.reason == "stopped after 1 s" and time.monotonic() - start < 20
    time.sleep(3)
    assert not mark.exists()


def test_the_file_is_whole_after_every_step_and_names_no_home(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saved(run)["steps"] == []
    monkeypatch.setattr(Path, "home", lambda: Path("/home/somebody"))
    run.call("one", lambda: (True, "in /home/somebody/models", "", None))
    found = saved(run)
    assert found["steps"][0]["summary"] == "in ~/models" and found["finished"] is False
    assert not list(run.target.parent.glob("*.part"))


def test_counts_of_the_tests(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(
        '<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1"><testcase classname="a" name="b"/>'
        '<testcase classname="a" name="c"><failure message="x"/></testcase></testsuite></testsuites>'
    )
    found = steps.read_tests(path)
    assert found == {"tests": 4, "failures": 1, "errors": 0, "skipped": 1, "failed": ["a::c"]}
    assert steps._tests(found) == (False, "2 of 3 passed, 1 skipped; first: a::c")
    assert steps._tests(found | {"failures": 0, "failed": []})[0] is True
    assert steps._tests({"tests": 0, "failures": 0, "errors": 0, "skipped": 0, "failed": []})[0] is False


@pytest.mark.parametrize(("device", "small"), [("llvmpipe (LLVM 19.1.7, 256 bits)", True), ("A card", False)])
def test_a_target_is_for_a_card(device: str, small: bool, run: Run) -> None:
    run.facts |= {"on": "X0", "devices": [{"name": "X0", "description": device}], "options": {"quick": False}}
    target = {"value": 0.6, "most": 0.05, "least": None, "met": False}
    run.call("bench", lambda: (True, "", "", {"targets": {"evict_share": target}}))
    said = steps.verdict(run)
    assert "60.0%, target at most 5%: missed" in said and ("meant for a GPU" in said) is small


def test_readings_compared() -> None:
    def reading(**changes: Any) -> dict[str, Any]:
        same = {"backend": "graph (X)", "backend_reason": None, "evictions": 2, "seconds": 1.0, "evict_seconds": 0.1}
        sets = {"first": [{1, 2, 3, 4}], "last": [{1, 2}], "logprob": -2.0, "tokens": [1, 2, 3]}
        return same | sets | changes

    found = probe.compared(reading(), reading(), reading())
    assert found["first_sets"] == found["sets"] == 1 and found["logprob_difference"] == 0 and found["tokens"] == 3
    assert steps._engine(found)[0]
    found = probe.compared(reading(), reading(first=[{1, 2, 3, 5}]), reading(last=[{1, 9}], tokens=[1, 2, 9]))
    assert found["first_sets"] == 0.75 and found["sets"] == 0.5 and found["tokens"] == 2
    assert not steps._engine(found)[0]
    far = probe.compared(reading(logprob=-2.2), reading(), reading())
    assert not steps._engine(far)[0]
    nothing = probe.compared(reading(evictions=0), reading(), reading())
    assert not steps._engine(nothing)[0]


def test_stages_of_a_device() -> None:
    stages = [{"verdict": "ok"}] * 6
    right: dict[str, Any] = {"verdict": "ok", "stages": stages, "error": 1e-6, "sets": 1.0, "reason": ""}
    assert steps._stages(right) == (True, "6 cases, scores within 1.0e-06, 100.00% of the sets equal")
    some = right | {"stages": [*stages, {"verdict": "unsupported"}]}
    assert steps._stages(some)[1].startswith("6 of 7 cases, "), "without the reference's packages, say"
    wrong = right | {"verdict": "mismatch", "reason": "score of x: off"}
    assert steps._stages(wrong) == (False, "mismatch: score of x: off")
    # a device that lacks operations is served through the host: slower, and right
    assert steps._stages(right | {"verdict": "unsupported", "reason": "no y"})[0]
    assert not steps._stages(right | {"verdict": "failed"})[0]


def test_results_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert devices.gpu_checks() == f"Not measured yet; the command is `{devices.COMMAND}`."
    eviction = {"model": "m.gguf", "cells_before": 6144, "cells_after": 4096, "seconds": 0.0123, "evict_share": 0.031}
    text: dict[str, Any] = {"decode_ms": 9.0, "decode_ms_bound": 6.0, "stock_decode_ms": 30.0}
    text |= {"stock_decode_ms_bound": 21.0, "first_token_seconds": 20.0, "first_token_seconds_bound": 15.0}
    text |= {"stock_first_token_seconds": None}
    bench = {"eviction": eviction | {"bytes_per_s": 3e11}, "memory": {"saved": 0.93}, "text": text}
    listed = [
        {"name": "tests", "status": FAILED, "result": None},
        {"name": "bench", "status": OK, "result": bench | {"copy_bytes_per_s": 1e12}},
    ]
    found: dict[str, Any] = {"on": "CUDA0", "devices": [{"name": "CUDA0", "description": "A card"}], "steps": listed}
    (tmp_path / "gpu-check-a.json").write_text(json.dumps(found | {"date": "2026-01-02T03:04:05"}))
    row = (
        "| A card (CUDA0) | m.gguf, 6,144 to 4,096 cells | 12.3 ms | 3.1% | 30% | 9.0 ms (6.0 ms) | 30.0 ms (21.0 ms) "
        "| 20.0 s (15.0 s) | - | 93.0% | 1 right, wrong: tests | 2026-01-02 |"
    )
    assert row in devices.gpu_checks()
    # without a measurement there is still a row
    (tmp_path / "gpu-check-a.json").write_text(json.dumps(found | {"date": "2026-01-02", "steps": listed[:1]}))
    assert "| A card (CUDA0) | - | - |" in devices.gpu_checks()
    assert devices.gpu_evictions().startswith("Not measured yet")
    # a benchmark alone, with what the doctor and the tests said
    parts = dict.fromkeys(devices._STAGES, 0.002)
    bench["eviction"] |= {"stages": parts, "prefill_tokens": 2048, "prefill_seconds": 0.4, "bytes_per_s": 3e9}
    targets = {"evict_share": {"value": 0.76, "most": 0.05, "least": None, "met": False}}
    targets["saved"] = {"value": 0.93, "most": None, "least": 0.85, "met": True}
    where = {"on": "CUDA0", "devices": found["devices"], "date": "2026-01-03", "copy_bytes_per_s": 1e12}
    (tmp_path / "device-b.json").write_text(json.dumps(bench | where | {"targets": targets}))
    assert "| 12.3 ms | 3.1% | 0.3% |" in devices.gpu_checks()
    assert "| 93.0% | - | 2026-01-03 |" in devices.gpu_checks()
    (tmp_path / "stages-b.json").write_text('{"stages": [{"verdict": "ok"}, {"verdict": "mismatch"}]}')
    counts = {"tests": 5, "failures": 1, "errors": 0, "skipped": 1, "failed": ["tests.test_a::test_b[x-CUDA0]"]}
    (tmp_path / "tests-b.json").write_text(json.dumps(counts))
    said = "1 of 2 cases of the stages right; 3 of 4 tests passed, failed: `test_b[x-CUDA0]`"
    assert f"| 93.0% | {said} | 2026-01-03 |" in devices.gpu_checks()
    row = (
        "| A card (CUDA0) | 12.3 ms | 2.0 ms | 2.0 ms | 2.0 ms | 2.0 ms | 2.0 ms | 2.3 ms | 2,048 tokens in 400 ms "
        "| 76.0% | at most 5%: missed | 93.0% | at least 85%: met |"
    )
    assert row in devices.gpu_evictions()


# ---- the program -------------------------------------------------------------------------------


def test_a_build_that_fails_is_told_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "build.log"
    log.write_text("the compiler said no\n")

    def ensure(*, tests: bool) -> None:
        raise SetupError(f"building the library failed: no. The log is {log}")

    monkeypatch.setattr(venv, "ensure", ensure)
    monkeypatch.setenv("CMAKE_ARGS", "")
    assert gpu_check.main(["--backend", "cpu", "--json", str(tmp_path / "x.json")]) == 1
    found = json.loads((tmp_path / "x.json").read_text())
    assert [step["status"] for step in found["steps"]] == [FAILED, *[SKIPPED] * len(steps.NAMES)]
    assert found["steps"][0]["result"] == {"log": ["the compiler said no"]}
    assert found["finished"] and not found["ok"] and "build" in found["verdict"]
    assert "attach it to a report" in capsys.readouterr().out


def test_stopped_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure(*, tests: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(venv, "ensure", ensure)
    monkeypatch.setenv("CMAKE_ARGS", "")
    assert gpu_check.main(["--backend", "cpu", "--json", str(tmp_path / "x.json")]) == 130
    assert json.loads((tmp_path / "x.json").read_text())["verdict"] == "stopped by hand"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "stages,nothing"], "there is no step 'nothing'"),
        (["--json", "/no/such/folder/x.json"], "does not exist"),
        (["--backend", "abacus"], "invalid choice"),
        (["--here", "--backend", "cpu"], "--here builds nothing: give one of them"),
    ],
)
def test_wrong_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(words)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


# ---- what is at hand ---------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources, with no environment, no compiler and no registry that answers."""
    from restkv_local import native

    ignore = shutil.ignore_patterns("__pycache__", "lib")
    for name in ("tools", "patches", "restkv_local"):
        shutil.copytree(source.ROOT / name, tmp_path / "checkout" / name, ignore=None if name == "tools" else ignore)
    for name, value in {
        "RESTKV_LIB_PATH": str(native.library_dir()), "PATH": str(tmp_path), "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "RESTKV_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return tmp_path / "checkout"


def here(checkout: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """gpu_check.py of that checkout with the running interpreter; what it wrote."""
    target = checkout / "x.json"
    command = [sys.executable, str(checkout / "tools" / "gpu_check.py"), "--here", *words, "--json", str(target)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300)
    return done, json.loads(target.read_text())


def test_the_tests_that_it_runs_are_there() -> None:
    for programs in (place.made(), place.at_hand()):
        assert set(place.GRAPH_TESTS) <= set(programs.tests)
        assert not [name for name in programs.tests if not (source.ROOT / name).is_file()]


@pytest.mark.usefixtures("native")
def test_here_takes_what_is_at_hand(checkout: Path) -> None:
    before = sorted(path.name for path in checkout.iterdir())
    done, found = here(checkout, "--quick", "--only", "model")
    assert done.returncode == 0, done.stderr
    assert [(step["name"], step["status"]) for step in found["steps"]] == [("devices", OK), ("model", OK)]
    assert found["backend"]["name"] == "here" and found["options"]["here"] and found["versions"]["restkv_local"]
    after = sorted(path.name for path in checkout.iterdir())
    assert after == sorted([*before, "x.json"]), "no environment, no build folder"


def test_here_without_a_library_says_so_once(checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESTKV_LIB_PATH", str(tmp_path / "nothing"))
    done, found = here(checkout)
    assert done.returncode == 1
    statuses = {step["name"]: step["status"] for step in found["steps"]}
    assert statuses == {"devices": FAILED, **dict.fromkeys(steps.NAMES, SKIPPED)}
    assert "LibraryError" in found["steps"][0]["reason"] and "nothing" in found["verdict"]


def test_here_leaves_out_by_name(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pytest, no embedded model: the steps that need them are skipped, and the verdict tells."""
    monkeypatch.setattr(place.importlib.util, "find_spec", lambda name: None)
    told = '{"devices": [{"name": "CPU", "kind": "cpu", "description": "A processor"}], "embedded_model": null}'
    monkeypatch.setattr(sys, "executable", str(program(tmp_path, "python")))
    Path(sys.executable).write_text(f"#!/bin/sh\necho '{told}' > \"$3\"\n")
    options = Namespace(quick=True, only=["tests", "engine"], shape=None, layers=None, text=None)
    programs = place.at_hand()
    assert programs.pytest is None and programs.environment["PIP_NO_INDEX"] == "1"
    steps.all_steps(run, options, programs)
    run.facts["options"] = {"quick": True}
    said = steps.verdict(run)
    assert [step.status for step in run.steps] == [OK, SKIPPED, SKIPPED]
    assert "left out: tests (pytest is not installed" in said and "left out: engine (the embedded model" in said


@pytest.mark.usefixtures("native")
def test_short_run_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venv, "ensure", lambda *, tests: None)
    monkeypatch.setattr(venv, "python", lambda: Path(sys.executable))
    monkeypatch.setenv("CMAKE_ARGS", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["--quick", "--backend", "cpu", "--only", "stages,model,bench", "--text", "1024"]
    assert gpu_check.main([*words, "--json", str(tmp_path / "x.json")]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    names = ["build", "devices", "stages of the CPU's kernels", "stages on CPU", "model", "bench"]
    assert [step["name"] for step in found["steps"]] == names and found["ok"] and found["finished"]
    said = {step["name"]: step for step in found["steps"]}
    assert found["on"] == "CPU" and found["backend"]["name"] == "cpu" and found["versions"]["restkv_local"]
    assert said["stages on CPU"]["result"]["verdict"] == "ok" and said["stages on CPU"]["result"]["rows_equal"]
    bench = said["bench"]["result"]
    assert bench["eviction"]["cells_before"] == 768 and bench["text"]["context"] == 1024
    assert "CPU" in found["verdict"] and "target at most 5%" in found["verdict"]
    assert all(step["seconds"] >= 0 for step in found["steps"])
