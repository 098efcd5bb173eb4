"""The blocks of docs/benchmarks.md on what an archive costs follow from the files in benchmarks/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lib.docs import archives, results
from restkv_local.bench.archive import ASKED

FIGURES = (
    "stream_seconds read_seconds question_seconds question_share cut_seconds again_seconds cut_faster slower "
    "slower_cpu bytes_per_s read_disk_bytes question_bytes_per_s"
).split()
COLD = (
    "cold_read_seconds cold_slower cold_question_seconds cold_bytes_per_s cold_disk_bytes cold_question_disk_bytes"
).split()


def written(folder: Path, name: str, *, cold: bool = False, limit: int | None = None, **changes: Any) -> None:
    row: dict[str, Any] = {"context": 6144, "chunk": 512, "archive_bytes": 141_600_000, "archive_place": "file"}
    for figure in FIGURES + (COLD if cold else []):
        row |= {figure: 0.5, f"{figure}_min": 0.25, f"{figure}_max": 12.0}
    row |= {"asked": ASKED[6144], "note": None} | changes
    settings = {"contexts": [6144], "model": "m.gguf", "budget": 512, "pairs": 2, "threads": 2, "cold": cold}
    settings |= {"archive": "file", "questions": 4, "chunk": None}
    device = {"cpu": "a processor", "cores": 2, "memory_limit_bytes": limit, "load": 9.27}
    result = {"rows": [row], "settings": settings, "device": device, "date": "2026-01-02T03:04:05"}
    (folder / f"archive-{name}.json").write_text(json.dumps(result))


def test_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert "Not measured yet" in archives.costs() and "--cold" in archives.pressure()
    written(tmp_path, "some", slower=0.15, slower_cpu=0.151, cut_faster=19.9)
    text = archives.costs()
    assert "| 6,144 | m.gguf | 141.6 MB, file | 512 | 500 ms | 500 ms |" in text
    assert "+15% (+25% to +1200%); asked at most 15%: met" in text, "at the bound"
    assert "+15% (+25% to +1200%); asked at most 15%: missed" in text, "by processor time"
    assert "20x (0x to 12x); asked at least 20x: missed" in text, "and below one, however it is rounded"
    assert "2 cores of a processor, 2 threads, budget 512, 2 pairs, 9.3 threads wanted a core, 2026-01-02." in text
    options = "--model m.gguf --budget 512 --threads 2 --pairs 2 --json benchmarks/archive-some.json"
    assert f"`restkv-bench archive {options}`" in text
    assert "Not measured yet" in archives.pressure()


def test_what_was_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    nothing = {"cut_seconds": None, "again_seconds": None, "cut_faster": None}
    written(tmp_path, "windows", note="it is read again from its start", asked={}, **nothing)
    text = archives.costs()
    assert "| - | - | - | 0 B/s |" in text and "- 6,144 tokens, m.gguf: it is read again from its start" in text
    assert "asked" not in text


def test_pressure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    written(tmp_path, "cold", cold=True)
    written(tmp_path, "limit", cold=True, limit=320_000_000)
    text = archives.pressure()
    assert "| 141.6 MB | free | 500 ms | 500 ms | +50% (+25% to +1200%) |" in text
    assert "| 141.6 MB | at most 320.0 MB |" in text
    assert ", in a group of processes with 320.0 MB of memory, 2026-01-02. Command: `restkv-bench archive" in text
    assert text.count("--cold --json benchmarks/archive-") == 2
    assert "Not measured yet" in archives.costs()
