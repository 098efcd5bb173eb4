"""The check of devices: what it measures, what it finds in a library that is wrong on purpose, and what follows."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf import GGMLQuantizationType, dequantize

import models
from cli_fake import FakeEngine
from native_build import build
from places import PATHS, SUPPORT
from restkv_local import native
from restkv_local.check import Device, DeviceCheck, StageCheck, check_device, devices, first_load, stages
from restkv_local.check.cases import MOVES, SCORES, TYPES, arrays_of, pack, rows_of
from restkv_local.check.recalls import RECALLS
from restkv_local.cli.chat import main as chat
from restkv_local.cli.doctor import command as doctor_module
from restkv_local.config import CHECK_ERROR_MAX
from restkv_local.errors import ConfigError, EvictionError, ModelError
from rpc_servers import free_port, join, wait_for

pytestmark = pytest.mark.usefixtures("native")

GPU = Device("GPU0", "a card", "CUDA", "gpu", "0000:01:00.0", False, 1, 2, "1.0")


# ---- what is measured --------------------------------------------------------------------------


@pytest.mark.parametrize("type_", TYPES)
def test_packed_rows_are_what_ggml_reads(type_: str) -> None:
    x = np.random.default_rng(1).standard_normal((3, 5, 64)).astype(np.float32)
    rows, values = pack(x, type_)
    read = dequantize(rows, GGMLQuantizationType(TYPES[type_]))
    np.testing.assert_array_equal(read, values)
    assert np.abs(values - x).max() < {"f32": 1e-9, "f16": 4e-3, "bf16": 4e-2, "q8_0": 3e-2, "q4_0": 0.4}[type_]


def test_cases_are_the_same_every_time() -> None:
    for case in SCORES:
        first, again = arrays_of(case), arrays_of(case)
        assert all(np.array_equal(first.values[name], again.values[name]) for name in first.values)
    assert len({case.name for case in SCORES}) == len(SCORES) and len({case.name for case in MOVES}) == len(MOVES)
    assert {case.type for case in SCORES} == {case.type for case in MOVES} == set(TYPES)


def test_tolerances_are_applied() -> None:
    want = np.array([[1.0, 2.0, 1e-9, 4.0]], np.float32)
    assert stages.relative_error(want, want) == 0.0
    assert stages.relative_error(want * np.float32(1.002), want) == pytest.approx(0.002, rel=1e-3)
    # far below the largest, digits are lost on every processor
    assert stages.relative_error(want + np.float32(1e-10), want) < CHECK_ERROR_MAX
    assert stages.relative_error(want * np.float32(np.nan), want) == float("inf")
    scores = np.array([[5.0, 4.0, 3.0, 2.9999, 1.0]], np.float32)
    best = np.array([[0, 1, 2]], np.int32)
    assert stages.equal_sets(best, best, scores) == 1.0
    assert stages.equal_sets(np.array([[0, 1, 3]], np.int32), best, scores) == 1.0  # a tie at the cut
    assert stages.equal_sets(np.array([[0, 2, 4]], np.int32), best, scores) == pytest.approx(2 / 3)


def test_unknown_device() -> None:
    with pytest.raises(ConfigError, match="no device 'GPU9'; known are .*CPU"):
        check_device("GPU9")
    with pytest.raises(ConfigError, match="no device"):
        native.check(native.lib().restkv_distrust(b"GPU9", b"why"))


def test_moves_that_are_impossible_are_refused() -> None:
    k, v, kept = rows_of(MOVES[0])
    call = native.lib().restkv_compact_on
    case, address = MOVES[0], stages.kernels.address

    def move(type_: int = TYPES[case.type], heads: int = case.kv_heads, cells: np.ndarray = kept) -> int:
        return int(call(b"CPU", type_, heads, case.head_size, case.cells, address(k), address(v), address(cells),
                        case.kept, 0))  # fmt: skip

    before = k.copy()
    for wrong in (kept[:, ::-1].copy(), kept + case.cells, kept - kept[:, :1] - 1):
        assert move(cells=wrong.astype(np.int32)) == native.INVALID
    assert move(type_=3) == move(heads=0) == native.INVALID
    assert np.array_equal(k, before) and move() == native.OK and not np.array_equal(k, before)


def test_what_a_device_lacks_and_what_fails_are_results() -> None:
    def lacks() -> dict[str, Any]:
        raise ModelError("GPU0 cannot run TANH")

    def fails() -> dict[str, Any]:
        raise EvictionError("GPU0 failed")

    found = [stages._judged("score", "case", run) for run in (lacks, fails)]
    assert [(stage.verdict, stage.reason) for stage in found] == [
        ("unsupported", "GPU0 cannot run TANH"), ("failed", "GPU0 failed")
    ]  # fmt: skip
    right = StageCheck("score", "other", "ok", 1e-6, 1.0)
    check = DeviceCheck(GPU, "cpu-fused", True, (right, found[0]), 0.1)
    assert check.verdict == "ok" and "TANH" in check.reason and check.rows_equal is None
    check = DeviceCheck(GPU, "cpu-fused", True, (right, *found), 0.1)
    assert check.verdict == "failed" and check.reason == "score of case: GPU0 failed" and check.error == 1e-6
    assert DeviceCheck(GPU, "cpu-fused", True, (found[0],), 0.1).verdict == "unsupported"


# ---- what is remembered ------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Verdicts of these tests."""
    monkeypatch.setenv("RESTKV_CACHE", str(tmp_path))
    return tmp_path / "devices"


def verdict(device: Device, verdict_: Any) -> DeviceCheck:
    return DeviceCheck(device, "cpu-fused", True, (StageCheck("score", "a case", verdict_, reason="because"),), 0.1)


def test_a_verdict_is_kept_for_this_device_and_library(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_load.recall(GPU) is None
    first_load.remember(verdict(GPU, "mismatch"))
    known = first_load.recall(GPU)
    assert known is not None and (known.verdict, known.reason) == ("mismatch", "score of a case: because")
    for change in ({"name": "GPU1"}, {"description": "another"}, {"driver": "1.1"}):
        assert first_load.recall(dataclasses.replace(GPU, **change)) is None
    monkeypatch.setattr(native, "ABI_VERSION", native.ABI_VERSION + 1)
    assert first_load.recall(GPU) is None


def test_a_failure_is_tried_again(empty_cache: Path) -> None:
    assert first_load.remember(verdict(GPU, "failed")).reason
    assert first_load.recall(GPU) is None and list(empty_cache.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"key": 1}', b'{"verdict": "ok"}'])
def test_a_damaged_verdict_is_no_verdict(content: bytes, empty_cache: Path) -> None:
    first_load.remember(verdict(GPU, "ok"))
    (path,) = empty_cache.iterdir()
    good = path.read_bytes()
    path.write_bytes(content)
    assert first_load.recall(GPU) is None
    path.write_bytes(good.replace(b'"ok"', b'"fine"'))
    assert first_load.recall(GPU) is None
    first_load.remember(verdict(GPU, "ok"))
    assert first_load.recall(GPU) is not None


def test_devices_are_checked_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def check(name: str, quick: bool) -> DeviceCheck:
        assert quick
        checked.append(name)
        return verdict(GPU, "ok")

    monkeypatch.setattr(first_load, "devices", lambda: [*devices(), GPU])
    monkeypatch.setattr(first_load, "check_device", check)
    monkeypatch.setattr(first_load, "distrust", lambda device, known: "wrong" if known.verdict == "mismatch" else "")
    assert first_load.trust_devices() == [] and first_load.trust_devices() == []
    assert checked == ["GPU0"]  # the CPU holds its cache itself: it has no graphs to be checked
    first_load.remember(verdict(GPU, "mismatch"))
    assert first_load.trust_devices() == ["wrong"] and checked == ["GPU0"]


# ---- the command -------------------------------------------------------------------------------


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(chat.main, ["doctor", *arguments])


def test_doctor_on_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "doctor.json"
    result = doctor("--no-memory", "--device", "CPU", "--json", str(path))
    assert result.exit_code == 0, result.output
    assert "All is well: evictions are right on CPU." in result.stdout and "not measured" in result.stdout
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["verdict"] == "ok" and found["through_host"] == []
    assert found["versions"]["interface"] == native.ABI_VERSION and found["devices"][0]["name"]
    fused, graphs = found["checks"]
    assert (fused["yardstick"], graphs["yardstick"]) == ("reference", "cpu-fused")
    for check in (fused, graphs):
        assert check["verdict"] == "ok" and check["rows_equal"] is True and not check["quick"]
        assert 0.0 < check["error"] < 1e-5 and check["sets"] == 1.0
        recalls = RECALLS if check is graphs else ()
        assert [stage["case"] for stage in check["stages"]] == [case.name for case in (*SCORES, *MOVES, *recalls)]
        assert {stage["verdict"] for stage in check["stages"]} == {"ok"}
    speed = graphs["speed"]
    assert speed["copy_bytes_per_s"] > 1e6 and speed["attend_seconds"] > 0 and speed["shape"]["cells"] == 2048


def test_doctor_measures_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "LENGTHS", (520, 780))
    found = doctor_module._memory(lambda text: None)
    assert found["verdict"] == "ok", found
    assert [run["tokens"] for run in found["runs"]] == [520, 780] and abs(found["growth"]) < 0.02
    monkeypatch.setattr(doctor_module, "MEMORY_GROWTH_MAX", -1.0)

    def peak(settings: object, n_ctx: int, n_tokens: int, environment: dict[str, str]) -> dict[str, Any]:
        assert "GGML_OP_OFFLOAD_MIN_BATCH" in environment, "a GPU would help, if only a slow one"
        run: dict[str, Any] = found["runs"][0]
        return run

    monkeypatch.setattr("restkv_local.bench.speed.peak_of_child", peak)
    grown = doctor_module._memory(lambda text: None)
    assert grown["verdict"] == "mismatch" and "grew by 0.0%" in grown["reason"]
    monkeypatch.setenv("RESTKV_MODEL", "/nowhere.gguf")
    assert doctor_module._memory(lambda text: None)["verdict"] == "skipped"


def test_doctor_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(verdict(GPU, "mismatch"), device=devices()[-1], yardstick="reference")
    right = dataclasses.replace(wrong, stages=(StageCheck("compact", "f16", "ok", rows_equal=True),))
    for fused, graphs, words in ((wrong, right, "do not trust answers"), (right, wrong, "leave it at 'auto'")):
        graphs = dataclasses.replace(graphs, yardstick="cpu-fused")
        monkeypatch.setattr("restkv_local.check.check_fused", lambda fused=fused: fused)
        monkeypatch.setattr("restkv_local.check.check_device", lambda name, graphs=graphs: graphs)
        result = doctor("--no-memory", "--device", "CPU")
        text = " ".join(result.stdout.split())
        assert result.exit_code == 1 and words in text and "score of a case: because" in text, text


def test_doctor_refuses_in_one_line(tmp_path: Path) -> None:
    for arguments, words in (
        (["--device", "GPU9"], "no device 'GPU9'"),
        (["--json", str(tmp_path / "no" / "file")], "does not exist"),
        (["--budget", "9"], "No such option"),
    ):
        result = doctor(*arguments)
        assert result.exit_code in (1, 2) and words in result.stderr and result.stdout == ""


def test_chat_is_as_it_was() -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(chat.main, list(arguments), obj={"engine": FakeEngine}, input=b"doctor")

    FakeEngine.instances.clear()
    assert run("--ask", "doctor").stdout == run().stdout == "I heard: doctor\n"
    result = run("--budget", "256", "doctor")
    assert result.exit_code == 2 and "--budget does not belong to doctor" in result.stderr
    result = run("nurse")
    assert result.exit_code == 2 and "No such command 'nurse'" in result.stderr
    assert len(FakeEngine.instances) == 2


# ---- a device of its own, right and wrong ------------------------------------------------------


@pytest.fixture(scope="module")
def served(build_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, str]]:
    """Folders of the right library and of the wrong one, and the port of a device that a process serves."""
    if os.name == "nt":
        pytest.skip("the peers load shared libraries by their Unix names")
    root = tmp_path_factory.mktemp("doctor")
    right, wrong = join(build_cache, root / "right"), join(build_cache, root / "wrong")
    for path in (build(build_cache, "restkv-wrong-stage") / "wrong-stage").glob("libllama.*"):
        shutil.copy2(path, wrong)
    port = free_port()
    command = [sys.executable, str(SUPPORT / "rpc_peer.py"), str(right), str(port)]
    server = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": PATHS}, stdout=subprocess.DEVNULL)
    try:
        wait_for(port, server)
        yield right, wrong, str(port)
    finally:
        server.kill()
        server.wait()


def meet(folder: Path, port: str, tmp_path: Path, wrong: str = "") -> dict[str, Any]:
    """What a process finds that meets the served device with a library and an empty cache, by kind of line."""
    model = models.write_random(tmp_path / "model.gguf", "llama", seed=3)
    env = os.environ | {
        "PYTHONPATH": PATHS,
        "RESTKV_WRONG_STAGE": wrong,
        "RESTKV_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    command = [sys.executable, str(SUPPORT / "doctor_peer.py"), str(folder), port, str(model)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["what"]: line for line in lines}


@pytest.mark.parametrize("library", ["right", "wrong"])
def test_a_right_device_keeps_its_graphs(library: str, served: tuple[Path, Path, str], tmp_path: Path) -> None:
    """The test build is right too, as long as nothing asks it not to be."""
    right, wrong, port = served
    found = meet(right if library == "right" else wrong, port, tmp_path)
    device = next(device for device in found["devices"]["devices"] if device["name"] == "RPC0")
    assert device["kind"] in first_load.HOLD_LAYERS and device["memory_total"] > 0 and not device["host_memory"]
    check = found["quick"]["check"]
    assert check["verdict"] == "ok" and check["error"] < 1e-4 and check["rows_equal"] and check["speed"] is None
    for run in (found["first"], found["second"]):
        assert run["backend"] == "graph (RPC0)" and run["reason"] is None and run["evictions"] >= 2
        assert run["notices"] == [] and run["logits"] == found["host"]["logits"]
    assert [found[name]["checked"] for name in ("first", "second", "host")] == [1, 0, 0]
    assert found["host"]["backend"] == "cpu-host-copy"


def test_a_device_that_rounds_the_factors_of_products_scores_as_the_cpu(
    served: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """As GPUs do, to F16 or TF32; without products in parts the scores are off by a thousandth."""
    _, wrong, port = served
    found = meet(wrong, port, tmp_path, "round")
    check = found["quick"]["check"]
    assert check["verdict"] == "ok" and check["error"] < 2e-5 and check["rows_equal"]
    run = found["first"]
    assert run["backend"] == "graph (RPC0)" and run["notices"] == [] and run["evictions"] >= 2
    assert run["kept"] == found["host"]["kept"] and run["logits"] == found["host"]["logits"]


@pytest.mark.parametrize("stage", ["attend", "compact"])
def test_a_wrong_stage_is_found_and_avoided(stage: str, served: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, wrong, port = served
    found = meet(wrong, port, tmp_path, stage)
    check = found["quick"]["check"]
    assert check["verdict"] == "mismatch"
    bad = {one["stage"] for one in check["stages"] if one["verdict"] == "mismatch"}
    assert bad == {"recall"} | ({"attend", "score"} if stage == "attend" else {"compact"})
    assert check["rows_equal"] is (stage == "attend")

    for name in ("first", "second"):
        run = found[name]
        assert run["backend"] == "cpu-host-copy" and run["evictions"] >= 2
        assert run["reason"].startswith("RPC0 gives wrong results (") and "through the host" in run["reason"]
        # said when the model is loaded, and once
        assert len(run["notices"]) == 1 and run["heard"] == run["notices"] and "RPC0" in run["heard"][0]
        assert run["kept"] == found["host"]["kept"] and run["logits"] == found["host"]["logits"]
    assert [found[name]["checked"] for name in ("first", "second")] == [1, 0]

    doctor = found["doctor"]
    assert doctor["code"] == 1 and doctor["found"]["through_host"] == ["RPC0"]
    assert "RPC0 gives wrong results. Evictions of its layers go through the host" in " ".join(doctor["text"].split())
    (whole,) = doctor["found"]["checks"]
    assert whole["verdict"] == "mismatch" and whole["speed"] is None and whole["device"]["name"] == "RPC0"
