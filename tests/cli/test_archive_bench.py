"""`restkv-bench archive` on a tiny model: what it measures; pages that a system forgets, and limits of memory."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from restkv_local.bench import archive as archive_bench
from restkv_local.bench import process
from restkv_local.cli.bench.main import main
from restkv_local.models import random_gguf
from restkv_local.models.shapes import SHAPES, bytes_per_cell

BUDGET, RESERVE, TEXT = 128, 64, 512
CAN_DROP = process.page_cache_can_go()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gguf.write(tmp_path_factory.mktemp("shapes") / "tiny.gguf", "tiny")


def run(model: Path, path: Path, *more: str) -> dict[str, Any]:
    words = f"archive --model {model} --contexts {TEXT} --budget {BUDGET} --reserve {RESERVE} --threads 1 --questions 2"
    done = CliRunner().invoke(main, [*words.split(), "--json", str(path), *more])
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(path.read_text())
    assert "reading" in done.output and "cut in the middle" in done.output
    return result


@pytest.mark.usefixtures("native")
def test_whole_command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(archive_bench.ASKED, TEXT, {"slower": 0.15, "cut_faster": 20.0})
    result = run(model, tmp_path / "a.json", "--pairs", "2", "--archive", "ram")
    assert result["settings"]["model"] == model.name and str(model.parent) not in json.dumps(result)
    assert (result["rows"][0]["chunk"], result["settings"]["pairs"]) == (RESERVE, 2)
    assert result["device"]["load"] is None or result["device"]["load"] >= 0
    (row,) = result["rows"]
    assert (row["archive_place"], row["archive_types"], row["note"]) == ("ram", ["f16", "f16"], None)
    assert row["archive_bytes"] == TEXT * bytes_per_cell(SHAPES["tiny"], 2)
    assert row["asked"] == {"slower": 0.15, "cut_faster": 20.0}
    for name in ("slower", "slower_cpu", "question_share", "cut_faster", "read_seconds", "bytes_per_s"):
        assert row[f"{name}_min"] <= row[name] <= row[f"{name}_max"], name
    assert min(row["read_seconds"], row["stream_seconds"], row["cut_seconds"], row["question_seconds"]) > 0
    # of each chunk but the first three, which nothing was evicted before: all keys at least, in both layers
    chunks = (TEXT - BUDGET - RESERVE) // RESERVE
    keys = bytes_per_cell(SHAPES["tiny"], 2) // 2
    assert row["read_bytes"] >= keys * sum(BUDGET + RESERVE * i for i in range(1, chunks + 1))
    assert 0 < row["recall_share"] < 1 and 0 < row["copied_share"] <= 1
    assert "cold_read_seconds" not in row and row["read_disk_bytes"] == 0


@pytest.mark.usefixtures("native")
@pytest.mark.skipif(not CAN_DROP, reason="this system cannot be told to forget a file")
def test_cold(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[int] = []

    def drop(file: int) -> None:
        dropped.append(os.fstat(file).st_size)
        assert not list(tmp_path.rglob("archive")), "nothing that a kill could leave"

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(archive_bench, "drop_pages", drop)
    result = run(model, tmp_path / "a.json", "--pairs", "1", "--archive", "file", "--cold")
    (row,) = result["rows"]
    assert row["archive_place"] == "file" and row["cold_read_seconds"] > 0 and row["cold_question_seconds"] > 0
    # before each chunk, behind the last, and before each question
    assert len(dropped) >= TEXT // RESERVE + 1 + 2 and min(dropped) >= row["archive_bytes"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"], "the file is gone"


@pytest.mark.usefixtures("native")
def test_speed_reads_as_the_archive_says(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    words = f"speed --model {model} --contexts {TEXT} --budget {BUDGET} --reserve {RESERVE} --threads 1 --pairs 1"
    done = CliRunner().invoke(main, [*words.split(), "--archive", "file", "--decode-tokens", "2", "--json", str(path)])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(path.read_text())["rows"]
    assert row["notes"] == ["read by recall, with an archive in a file"] and row["prefill_ratio"] > 0
    assert row["evictions"] > 0 and row["peak_rss_bytes"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--archive", "none"], "needs an archive"), (["--archive", "ram", "--cold"], "--archive file")],
)
def test_what_cannot_be_is_said(model: Path, more: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["archive", "--model", str(model), *more])
    assert done.exit_code == 1 and message in done.output


@pytest.mark.skipif(not CAN_DROP or sys.platform != "linux", reason="only Linux tells what came from a disk")
def test_dropped_pages_come_from_the_disk_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    os.sync()

    def fetched() -> int:
        before = process.disk_read_bytes()
        path.read_bytes()
        return process.disk_read_bytes() - before

    assert fetched() == 0, "it has just been written"
    with path.open("rb") as file:
        process.drop_pages(file.fileno())
    cold = fetched()
    if cold == 0:
        pytest.skip("this folder lies in memory")
    assert cold >= 1 << 20 and fetched() == 0


def test_limit_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, roots = tmp_path / "cgroup", {1: tmp_path / "one", 2: tmp_path / "two"}
    monkeypatch.setattr(process, "_GROUPS", groups)
    monkeypatch.setattr(process, "_ROOTS", {"memory": (roots[1], "limit"), "": (roots[2], "max")})
    assert process.memory_limit_bytes() is None, "no such groups"
    groups.write_text("3:cpu,cpuacct:/x\n2:memory:/a/b\n0::/c\n")
    for folder in (roots[1] / "a" / "b", roots[2] / "c"):
        folder.mkdir(parents=True)
    (roots[1] / "a" / "b" / "limit").write_text("9223372036854771712\n")
    (roots[2] / "c" / "max").write_text("max\n")
    assert process.memory_limit_bytes() is None
    (roots[1] / "a" / "limit").write_text("7000\n")
    assert process.memory_limit_bytes() == 7000, "a group above it counts too"
    (roots[2] / "c" / "max").write_text("5000\n")
    assert process.memory_limit_bytes() == 5000
