"""`restkv-bench device` on the CPU: what it measures, and the arithmetic beside it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from restkv_local.bench import device as device_bench
from restkv_local.bench import speed
from restkv_local.check.copying import copy_speed
from restkv_local.check.devices import Device
from restkv_local.cli.bench.main import main
from restkv_local.errors import ConfigError
from restkv_local.models import random_gguf
from restkv_local.models.shapes import SHAPES, bytes_per_cell, data_bytes

TINY = SHAPES["tiny"]
BUDGET, RESERVE, TEXT = 256, 128, 1024


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gguf.write(tmp_path_factory.mktemp("shapes") / "tiny.gguf", "tiny")


# ---- arithmetic --------------------------------------------------------------------------------


def test_bounds() -> None:
    row = {"context": 1000, "prefill_tokens_per_s": 50.0, "decode_ms": 40.0}
    row |= {"stock_prefill_tokens_per_s": 10.0, "stock_decode_ms": 200.0}
    found = device_bench.bounds(row, {"all": 900, "token": 600}, 10, 100, 4e4, 100.0)
    assert found["decode_ms_bound"] == pytest.approx(1000 * (600 + 10 * 100) / 4e4)
    assert found["stock_decode_ms_bound"] == pytest.approx(1000 * (600 + 10 * 1000) / 4e4)
    assert found["first_token_seconds"] == pytest.approx(20.04)
    assert found["stock_first_token_seconds"] == pytest.approx(100.2)
    assert found["first_token_seconds_bound"] == 10
    alone = device_bench.bounds(
        row | {"stock_prefill_tokens_per_s": None, "stock_decode_ms": None}, {"token": 1}, 1, 1, 1.0, 1.0
    )
    assert alone["stock_first_token_seconds"] is None and alone["first_token_seconds"] == pytest.approx(20.04)


@pytest.mark.parametrize(
    ("value", "asked", "met"),
    [
        (0.05, {"most": 0.05}, True),
        (0.051, {"most": 0.05}, False),
        (0.9, {"least": 0.85}, True),
        (0.8, {"least": 0.85}, False),
        (None, {"least": 0.85}, None),
    ],
)
def test_targets(value: float | None, asked: dict[str, float], met: bool | None) -> None:
    assert device_bench.target(value, **asked)["met"] is met


def test_place_of_the_cells() -> None:
    cpu = Device("CPU", "a processor", "CPU", "cpu", "", True, 1, 1)
    gpus = [Device(f"CUDA{i}", "a card", "CUDA", "gpu", "", False, 1, 1) for i in (0, 1)]
    devices = [*gpus, cpu]
    assert device_bench.place("graph (CUDA1)", devices, -1) == "CUDA1"
    assert device_bench.place("graph (CUDA1, CUDA0)", devices, -1) == "CUDA0"
    assert device_bench.place("cpu-host-copy", devices, -1) == "CUDA0"
    assert device_bench.place("cpu-fused", devices, 0) == "CPU"
    assert device_bench.place("cpu-fused", [cpu], -1) == "CPU"


def test_an_eviction_inside_the_timed_steps_counts_with_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    evicted: list[float] = []

    class Engine:
        def reset(self) -> None: ...

        def report(self) -> SimpleNamespace:
            return SimpleNamespace(capacity=64, reserve=1000)

        def eval(self, tokens: list[int]) -> None:
            if len(tokens) > 1 or tokens == [500]:  # the prompt, and the first step
                time.sleep(0.4)
                evicted.append(0.4)

    monkeypatch.setattr(speed, "synchronize", lambda engine: None)
    wanted = speed.SpeedSettings((500,), 4, 1, None, "full", "real")
    pair = speed._pair(Engine(), None, list(range(600)), 500, 500, wanted, False, "real", evicted)
    assert 0.4 <= pair.decode_ms < 20  # 400 ms / 1000, and not 400 ms / 4


# ---- the device --------------------------------------------------------------------------------


@pytest.mark.usefixtures("native")
def test_copy_on_the_cpu() -> None:
    # nothing copies slower than a disk, nor faster than this
    assert 1e8 < copy_speed("CPU", 1 << 24) < 1e13
    with pytest.raises(ConfigError, match="no device 'GPU9'; known are .*CPU"):
        copy_speed("GPU9")


@pytest.mark.usefixtures("native")
def test_whole_command(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    words = f"device --model {model} --budget {BUDGET} --reserve {RESERVE} --text {TEXT} --rounds 2 --decode-tokens 4"
    words += f" --threads 1 --gpu-layers 0 --copy-bytes 16777216 --json {path}"
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    assert result["settings"]["model"] == model.name and str(model.parent) not in path.read_text()
    assert result["on"] == "CPU" and result["devices"] and result["versions"]["restkv_local"]

    eviction, cell = result["eviction"], bytes_per_cell(TINY, TINY.n_layer)
    assert (eviction["cells_before"], eviction["cells_after"]) == (BUDGET + RESERVE, BUDGET)
    assert eviction["layers"] == 2 and eviction["backend"] == "cpu-fused"
    # every cell looked at, what stays read and written
    assert eviction["bytes"] == cell * (BUDGET + RESERVE) + 2 * cell * BUDGET
    assert eviction["bytes_per_s"] == pytest.approx(eviction["bytes"] / eviction["seconds"])
    assert eviction["seconds_bound"] == pytest.approx(eviction["bytes"] / result["copy_bytes_per_s"])
    assert 0 < eviction["seconds_min"] <= eviction["seconds"] <= eviction["seconds_max"]
    assert set(eviction["stages"]) == set(device_bench.STAGES)
    assert eviction["evict_share"] == pytest.approx(eviction["seconds"] / eviction["prefill_seconds"])
    assert eviction["prefill_tokens"] == RESERVE and eviction["prefill_seconds"] > 0

    memory = result["memory"]
    assert memory["kv_bytes"] == cell * (BUDGET + RESERVE) and memory["stock_kv_bytes"] == cell * TEXT
    parts = [memory[f"{name}_bytes"] for name in ("kv", "ring", "table", "wo", "graph", "scratch")]
    assert memory["evicting_bytes"] == sum(parts)
    (host,) = memory["by_device"]
    assert host["device"] == "CPU" and host["kv_bytes"] == memory["kv_bytes"] < host["used_bytes"]
    assert memory["saved"] == pytest.approx(1 - sum(parts) / (cell * TEXT))
    assert data_bytes(TINY, 2, "q4_0") - 32 * 30 < memory["weight_bytes"] <= data_bytes(TINY, 2, "q4_0")

    text = result["text"]
    assert text["context"] == TEXT and text["evictions"] > 0 and text["stock_decode_ms"] > 0
    assert text["first_token_seconds"] > TEXT / text["prefill_tokens_per_s"]
    for name, value, asked in (("evict_share", eviction["evict_share"], 0.05), ("saved", memory["saved"], 0.85)):
        found = result["targets"][name]
        assert found["value"] == value and asked in (found["most"], found["least"])
        assert found["met"] == (value <= asked if name == "evict_share" else value >= asked)
    assert "part of reading 128 tokens" in done.output and "target: at most 5%" in done.output


@pytest.mark.usefixtures("native")
def test_without_a_long_text(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    words = f"device --model {model} --budget {BUDGET} --reserve {RESERVE} --text 0 --rounds 1 --threads 1"
    done = CliRunner().invoke(main, [*words.split(), "--copy-bytes", "1000000", "--json", str(path)])
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    assert "text" not in result and list(result["targets"]) == ["evict_share"] and result["memory"]["saved"] is None


def test_budgets_in_bytes_are_refused(model: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["device", "--model", str(model), "--budget", "1MB", "--gpu-layers", "0"])
    assert done.exit_code == 1 and "needs --budget and --reserve in cells" in done.output
    done = CliRunner().invoke(main, ["device", "--json", str(tmp_path / "none" / "x.json")])
    assert done.exit_code == 2 and "does not exist" in done.output
