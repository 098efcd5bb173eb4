"""Recalls as ggml graphs on every device of the build: the choice of the CPU's threads, in a text and on arrays.

On the CPU, and where the same code computes (RPC), within the digits of a float; elsewhere within those of
docs/numerics.md.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_parity import prompt
from test_recall import Both
from test_recall_stages import Case, check

import devices
import models
from graph_cases import DEVICE_ERROR, assert_most_equal, each_device
from restkv_local import Engine, Report
from restkv_local.config import EvictConfig, Stages
from restkv_local.errors import ConfigError, ModelError
from restkv_local.reference.recall import RecallSettings

# Each with another attention: plain, norms of queries and keys, soft-cap, sliding window, sinks.
FAMILIES = ("llama", "qwen3", "gemma2", "gemma3", "gpt-oss")

pytestmark = pytest.mark.usefixtures("library")


def compare(case: Case, device: str, *, tile_floats: int = 0, **options: Any) -> None:
    """Graphs and threads come to the same; so do two threads that pack and one."""
    cpu = case.native(60, 16, **options)
    found = case.native(60, 16, device=device, tile_floats=tile_floats, threads=2, **options)
    if devices.computes_as_the_cpu(device):
        check(found, cpu)
    else:
        np.testing.assert_allclose(found[0], cpu[0], rtol=DEVICE_ERROR, atol=1e-7)
        assert_most_equal(list(found[1]), list(cpu[1]))


@each_device
@pytest.mark.parametrize("tile_floats", [0, 1, 60_000])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n": 63, "n_own": 150, "queries": 150},  # less than a panel, and rows behind that are more than one
        {"n": 64, "n_own": 1, "queries": 1},
        {"n": 65, "n_own": 0, "queries": 7},  # what asks lies in the text
        {"heads": 6, "kv": 1, "d": 64, "n": 129, "n_own": 64, "queries": 100},
        {"heads": 3, "kv": 3, "d": 80, "n": 200},
        {"heads": 2, "kv": 2, "d": 256, "n": 511, "n_own": 65},
        {"heads": 10, "kv": 5, "d": 128, "n": 1023, "queries": 16},
    ],
    ids=str,
)
def test_shapes_and_edges_of_panels(shape: dict[str, int], tile_floats: int, device: str) -> None:
    compare(Case(**shape), device, tile_floats=tile_floats)


@each_device
@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0", "q4_0"])
def test_types(kind: str, device: str) -> None:
    compare(Case(d=64, n=300, n_own=70), device, kind=kind, tile_floats=60_000)


@each_device
@pytest.mark.parametrize("n_own", [0, 40])
def test_soft_cap_and_attention_sinks(n_own: int, device: str) -> None:
    case = Case(heads=6, kv=3, n_own=n_own)
    sinks = np.array([1.0, -2.0, 6.0, 0.0, 40.0, -40.0], np.float32)
    compare(case, device, sinks=sinks)
    compare(case, device, softcap=2.5, sinks=sinks, tile_floats=60_000)


@each_device
@pytest.mark.parametrize("settings", [{"n_rows": 1}, {"kernel": 1, "sinks": 0}, {"n_rows": 500}], ids=str)
def test_settings(settings: dict[str, int], device: str) -> None:
    compare(Case(), device, settings=RecallSettings(**settings))


@each_device
def test_a_query_that_is_no_number_decides_nothing(device: str) -> None:
    case = Case()
    case.q[1, 5] = np.nan
    case.q[2, 7, 3] = np.inf
    compare(case, device)
    compare(case, device, sinks=np.zeros(4, np.float32))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="no device 'GPU9'"):
        Case().native(60, 16, device="GPU9")
    with pytest.raises(ModelError, match="CPU cannot run rows of 96 values of q8_0, which are no whole words, for a"):
        Case(heads=1, kv=1, d=96).native(60, 16, device="CPU", kind="q8_0")


@each_device
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, device: str, folder: Path) -> None:
    """Token by token the reference, while a text is read and for a question."""
    if family == "gpt-oss":
        devices.skip_gpt_oss(device)
    path = models.write_random(folder / f"graphs-{family}.gguf", family, seed=3)
    with Both(path, device=device, stages="graph", n_threads=2) as both:
        taken = both.native.stats.bytes_graph
        both.read(prompt(320, 450))
        both.decode(prompt(320, 20, seed=9))
        both.recall(20)
        both.answer(11, 4)
        both.recall()
        both.answer(12, 4)
        found = both.native.archive
        assert (found.n_layer_graph, found.devices.decode(), found.reason) == (found.n_layer, device, b"")
        assert both.native.stats.bytes_graph == taken  # all of it when the context was made


@each_device
@pytest.mark.parametrize(
    ("kv", "archive_type"), [("q8_0", "auto"), ("q4_0", "auto"), ("f16", "q8_0"), ("q8_0", "q4_0")]
)
def test_types_of_the_cache_and_of_the_archive(
    kv: str, archive_type: str, device: str, folder: Path, tmp_path: Path
) -> None:
    path = models.write_random(folder / f"graphs-{kv}.gguf", "llama", seed=7)
    with Both(path, kv=kv, archive_type=archive_type, archive=tmp_path / "rows.archive", device=device, stages="graph",
              n_threads=2) as both:  # fmt: skip
        both.read(prompt(320, 400))
        both.answer(11, 4)
        assert both.native.archive.n_layer_graph == 2


@each_device
@pytest.mark.parametrize("stages", ["auto", "fused", "host"])
def test_where_a_recall_attends(stages: Stages, device: str, folder: Path) -> None:
    path = models.write_random(folder / "where.gguf", "llama", seed=5)
    with Both(path, device=device, stages=stages) as both:
        both.read(prompt(320, 256))
        graphs = both.native.archive.n_layer_graph
        assert graphs == (2 if stages == "auto" and device != "CPU" else 0)


@each_device
def test_what_a_device_cannot_do_the_threads_do(device: str, folder: Path) -> None:
    path = models.write_random(folder / "words.gguf", "qwen3", seed=6, n_head=2, n_head_kv=1, head_dim=96)
    with Both(path, kv="q8_0", device=device, stages="graph") as both:
        both.read(prompt(320, 256))
        found = both.native.archive
        assert found.n_layer_graph == 0
        assert f"{device} cannot run rows of 96 values of q8_0".encode() in found.reason


def engine_on(path: Path, device: str, kv: str = "f16") -> Report:
    """What an engine reports that read a text with recall, and recalled for a question."""
    evict = EvictConfig(budget=128, reserve=128, window=16, stages="graph", archive="ram", prefill="recall")
    engine = Engine(path, 1024, evict, kv_type=kv, n_threads=1, **devices.placed(device, -1))
    engine.guide = "which one?"
    answer = list(itertools.islice(engine.generate([10 + i * i * 7 % 290 for i in range(500)], temp=0.0), 4))
    engine.recall("which one?")
    report = engine.report()
    engine.close()
    assert len(answer) == 4 and report.archive is not None and report.recalled > 0
    return report


@each_device
def test_the_report_names_what_attends(device: str, folder: Path) -> None:
    report = engine_on(models.write_random(folder / "report.gguf", "llama", seed=5), device)
    assert report.archive is not None
    assert (report.archive.backend, report.archive.backend_reason) == (f"graph ({device})", None)


@each_device
def test_the_engine_says_what_does_not_attend_there(device: str, folder: Path) -> None:
    path = models.write_random(folder / "said.gguf", "qwen3", seed=6, n_head=2, n_head_kv=1, head_dim=96)
    report = engine_on(path, device, "q8_0")
    lacks = f"{device} cannot run rows of 96 values of q8_0, which are no whole words, for a recall"
    assert report.archive is not None
    assert (report.archive.backend, report.archive.backend_reason) == ("cpu", lacks)
    assert len([notice for notice in report.notices if lacks in notice]) == 1
