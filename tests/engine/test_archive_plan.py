"""An archive before anything is loaded: what settings it goes with, what it takes, where it fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_plan import PLENTY, PROBE

from restkv_local.config import GUIDE_MAX, RECALL_SINKS, EvictConfig, archive_place
from restkv_local.errors import ConfigError
from restkv_local.paths import work_folder
from restkv_local.plan.memory import MemoryPlan, plan_memory

PATH = Path("model.gguf")


def plan(
    n_ctx: int = 131072, *, free: int = PLENTY, disk: int = PLENTY, probe: Any = PROBE, kv_type: Any = "f16",
    on_device: bool = False, **evict: Any,
) -> MemoryPlan:  # fmt: skip
    return plan_memory(
        PATH, probe, n_ctx, EvictConfig(**evict), kv_type=kv_type, on_device=on_device, free_bytes=free,
        free_disk=lambda folder: disk,
    )  # fmt: skip


# ---- settings ------------------------------------------------------------------------------------


def test_how_a_text_is_read_follows_from_the_archive() -> None:
    assert EvictConfig().prefill_used == "stream"
    assert EvictConfig(archive="ram").prefill_used == EvictConfig().with_(archive="file").prefill_used == "recall"
    assert EvictConfig(archive="ram", prefill="stream").prefill_used == "stream"
    assert plan(archive="ram").prefill == "recall" and plan(archive="ram").recalls
    assert not plan(archive="ram", prefill="guided").recalls and not plan(n_ctx=2048, archive="ram").recalls
    assert plan(archive="ram", prefill="guided").guide == GUIDE_MAX


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"archive": "none", "prefill": "recall"}, "prefill 'recall' reads with an archive: set archive"),
        ({"method": "full"}, "keeps every cell: there is nothing to archive"),
        ({"method": "h2o"}, "counts votes"),
        ({"method": "streamingllm"}, "nothing can be recalled"),
        ({"allocation": "pyramid"}, "use allocation 'uniform'"),
        ({"allocation": "ada"}, "use allocation 'uniform'"),
        ({"prefill": "exact"}, "use prefill 'recall'"),
        ({"budget": 32 + RECALL_SINKS}, f"from {32 + RECALL_SINKS + 1} to"),
        ({"archive": "rma"}, "archive must be none, ram, file or the path of a file"),
        ({"archive": ""}, "archive must be"),
        ({"archive": None}, "archive must be"),
        ({"archive_type": "f16"}, "archive_type must be one of auto, q8_0, q4_0"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvictConfig(**{"archive": "ram", **changes})
    if changes.get("archive") not in ("rma", "", None) and "archive_type" not in changes and "archive" not in changes:
        EvictConfig(**changes)


def test_places() -> None:
    assert [archive_place(place) for place in ("none", "ram", "file")] == ["none", "ram", "file"]
    assert {archive_place(path) for path in ("./rows", "rows.bin", "/tmp/rows", Path("rows"))} == {"file"}
    assert EvictConfig(archive="ram", budget=32 + RECALL_SINKS + 1).budget_min == 37


# ---- sizes ---------------------------------------------------------------------------------------


def test_an_archive_holds_the_context() -> None:
    p = plan(archive="ram")
    assert p.archive is not None
    assert (p.archive.place, p.archive.path, p.archive.types) == ("ram", None, ("f16", "f16"))
    assert p.archive.bytes == 131072 * PROBE.bytes_per_cell and p.archive.rows == p.context
    assert p.ring_bytes == (GUIDE_MAX + 1) * PROBE.bytes_window, "a question's queries are remembered"
    assert p.kv_bytes == plan().kv_bytes and plan().archive is None
    assert "archive in ram 3.0 GB" in p.summary and "archive" not in plan().summary
    assert plan(archive="ram", window=256).ring_bytes == 257 * PROBE.bytes_window
    assert plan(archive="ram", method="fifo").ring_bytes == p.ring_bytes


def test_an_archive_of_another_type() -> None:
    probe = replace(PROBE, bytes_archived=PROBE.bytes_per_cell // 2)
    p = plan(archive="ram", archive_type="q8_0", probe=probe)
    assert p.archive is not None and p.archive.types == ("q8_0", "q8_0")
    assert p.archive.bytes == 131072 * PROBE.bytes_per_cell // 2
    assert plan(archive="ram", archive_type="q4_0", kv_type=("q8_0", "q4_0")).archive is not None
    for kv_type in ("f16", ("q8_0", "f16"), "bf16"):
        with pytest.raises(ConfigError, match="archive_type 'q4_0' needs a cache of type q8_0 or q4_0"):
            plan(archive="ram", archive_type="q4_0", kv_type=kv_type)
    with pytest.raises(ConfigError, match="does not fit model.gguf: heads are odd; use archive_type 'auto'"):
        plan(archive="ram", archive_type="q8_0", probe=replace(PROBE, archive_refusal="heads are odd"))


def test_a_question_takes_what_the_cache_can_forget() -> None:
    def guide(**changes: Any) -> int:
        archive = plan(archive="ram", **changes).archive
        assert archive is not None
        return archive.guide

    assert guide() == GUIDE_MAX and guide(reserve=50) == 50
    assert guide(probe=replace(PROBE, n_layer_swa=3), reserve=40) == 40
    assert guide(probe=replace(PROBE, n_layer_recurrent=3)) == 0


# ---- what fits -----------------------------------------------------------------------------------


def test_an_archive_in_memory_that_does_not_fit() -> None:
    cache = plan().cache_bytes + (GUIDE_MAX - 32) * PROBE.bytes_window
    free = cache + 131072 * PROBE.bytes_per_cell
    assert plan(archive="ram", free=free).cache_bytes == cache
    said = r"needs 3.0 GB of memory beside .+ MB of cache, together 3.1 GB, and 3.1 GB are free"
    with pytest.raises(ConfigError, match=said) as error:
        plan(archive="ram", free=free - 1)
    largest = int(str(error.value).split("fits is ")[1].split(",")[0])
    assert plan(n_ctx=largest, archive="ram", free=free - 1).context == largest == 131072 - 256
    assert "archive='file'" in str(error.value)
    assert plan(archive="file", free=cache).archive is not None
    # on a device the cells take nothing of this memory
    assert plan(archive="ram", free=free - 1, on_device=True).archive is not None
    with pytest.raises(ConfigError, match=r"needs 3.0 GB of memory, and"):
        plan(archive="ram", free=10**9, on_device=True)


def test_an_archive_in_a_file_that_does_not_fit(tmp_path: Path) -> None:
    disk = 131072 * PROBE.bytes_per_cell
    for archive in ("file", tmp_path / "rows"):
        assert plan(archive=archive, disk=disk).archive is not None
        with pytest.raises(ConfigError, match=r"needs 3.0 GB of disk, and 3.0 GB are free in '.+'") as error:
            plan(archive=archive, disk=disk - 1)
        folder = str(work_folder()) if archive == "file" else str(tmp_path)
        assert f"'{folder}'" in str(error.value) and "fits is 130816, or name a file" in str(error.value)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = plan(archive="./rows.bin").archive
    assert found is not None and found.path == tmp_path / "rows.bin" and found.place == "file"
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        plan(archive=tmp_path)
    with pytest.raises(ConfigError, match="does not exist; make it first"):
        plan(archive="nowhere/rows")


def test_the_disk_is_asked(tmp_path: Path) -> None:
    evict, huge = EvictConfig(archive=tmp_path / "rows"), replace(PROBE, bytes_archived=1 << 40)
    assert plan_memory(PATH, PROBE, 2304, evict, free_bytes=PLENTY).archive is not None
    with pytest.raises(ConfigError, match="of disk"):
        plan_memory(PATH, huge, 131072, evict, free_bytes=PLENTY)
