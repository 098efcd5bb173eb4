"""The library behind restkv-eval: statistics, divergence, the grid, results."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restkv_local.config import METHODS, EvictConfig
from restkv_local.errors import ConfigError
from restkv_local.eval import fidelity, ppl
from restkv_local.eval.grid import Grid
from restkv_local.eval.reading import log_softmax
from restkv_local.eval.results import ResultFile, ResultsError, identity, read_results
from restkv_local.eval.run import tuned_batch
from restkv_local.eval.stats import difference_of, mean_of, wilson
from restkv_local.eval.summary import rows
from restkv_local.eval.variant import parse_variants

# ---- statistics ---------------------------------------------------------------------------------


def test_interval_of_a_mean_by_hand() -> None:
    mean = mean_of([1.0, 2.0, 3.0])
    assert mean.mean == 2.0 and mean.high == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-3)
    assert mean.low == pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-3)
    assert mean_of([5.0]) == (1, 5.0, None, None)
    with pytest.raises(ValueError, match="no values"):
        mean_of([])


def test_interval_of_a_share_stays_inside_and_has_a_width() -> None:
    # Wilson, n = 10, all right: lower end n / (n + z^2)
    z2 = 1.959964**2
    assert wilson(10, 10) == (pytest.approx(10 / (10 + z2), abs=1e-6), 1.0)
    assert mean_of([1.0] * 10, share=True).low == pytest.approx(0.7225, abs=1e-4)
    assert mean_of([0.0, 1.0], share=True)[2:] == pytest.approx((0.0945, 0.9055), abs=1e-4)
    wide = mean_of([0.0, 0.5, 1.0], share=True)
    assert (wide.low, wide.high) == (0.0, 1.0)
    assert mean_of([0.0, 0.0]).high == 0.0  # not a share: a loss of 0 is 0


def test_differences_are_paired() -> None:
    assert difference_of([1.0, 2.0, 4.0], [0.0, 1.0, 3.0]) == (3, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError):
        difference_of([1.0], [1.0, 2.0])


def test_divergence_by_hand() -> None:
    full = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], dtype=np.float32))
    evicted = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32))
    found = fidelity.compare(full, evicted, [1, 0])
    assert found["kl"] == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2, rel=1e-5)
    assert found["top1"] == 0.5  # argmax of [0.5, 0.5] is 0, of [0.25, 0.75] it is 1
    assert found["log_prob"] == pytest.approx((math.log(0.75) + math.log(0.9)) / 2, rel=1e-6)
    assert fidelity.compare(full, full, [0, 0])["kl"] == 0.0


def test_log_softmax_of_large_logits() -> None:
    found = log_softmax(np.array([1e4, 1e4 + math.log(3)]))
    assert found == pytest.approx([math.log(0.25), math.log(0.75)])


def test_scratch_gives_back_what_it_got(tmp_path: Path) -> None:
    scratch = fidelity.Scratch(tmp_path)
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((1, 3), dtype=np.float32)
    scratch.put("a", first)
    scratch.put("b", second)
    scratch.put("a", first + 1)
    assert (scratch.get("a") == first + 1).all() and (scratch.get("b") == second).all()
    assert not list(tmp_path.iterdir())  # the file has no name
    scratch.clear()
    with pytest.raises(KeyError):
        scratch.get("a")


def test_windows_of_a_text() -> None:
    found = ppl.by_window(np.array([1.0, 3.0, 5.0, 7.0, 9.0, 11.0]), 3)
    assert [(w["from"], w["to"], w["nll"]) for w in found] == [(1, 3, 2.0), (3, 5, 6.0), (5, 7, 10.0)]


# ---- the grid -----------------------------------------------------------------------------------


def _grid(**changes: Any) -> Grid:
    values: dict[str, Any] = {
        "model": None, "variants": parse_variants(["all"]), "budgets": (64,), "prefills": ("exact",),
        "contexts": (256,), "seeds": (0,), "reserve": 128, "kv_type": "f16", "threads": 1, "gpu_layers": 0,
        "unverified": False,
    }  # fmt: skip
    return Grid(**(values | changes))


def test_all_is_every_method_and_the_full_cache_runs_once() -> None:
    assert [variant.name for variant in parse_variants(["all", "restkv", "full"])] == [
        name for name in METHODS if name != "full"
    ]
    settings = _grid(budgets=(64, 128), prefills=("exact", "stream")).settings(7)
    assert [setting.full for setting in settings].count(True) == 1 and settings[0].full
    assert len(settings) == 1 + 4 * (len(METHODS) - 1)
    assert all(setting.evict.seed == 7 for setting in settings)


def test_variants_carry_settings() -> None:
    (variant,) = parse_variants(["restkv:kernel=5:pooling=avgpool:use_ema=false:alpha=none"])
    assert variant.changes == {"kernel": 5, "pooling": "avgpool", "use_ema": False, "alpha": None}
    assert _grid(variants=(variant,)).settings(0)[1].evict.kernel == 5
    (plain,) = parse_variants(["restkv:pooling=none"])
    assert plain.name == "restkv:pooling=none" and _grid(variants=(plain,)).settings(0)[1].evict.pooling_used == "none"


def test_variants_share_budgets_out() -> None:
    variants = parse_variants(["restkv:allocation=ada:floor=0.5", "snapkv:allocation=pyramid:beta=10"])
    first, second = (setting.evict for setting in _grid(variants=variants).settings(0)[1:])
    assert (first.allocation, first.floor, second.allocation, second.beta) == ("ada", 0.5, "pyramid", 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fifo:allocation=ada", "'fifo' needs one budget for all heads and layers"),
        ("best", "'best' is not a method"),
        ("restkv:kernels=5", "is no setting of a method"),
        ("restkv:kernel", "is no setting of a method"),
        ("restkv:kernel=4", "kernel must be odd"),
        ("restkv:budget=4", "is no setting of a method"),
        ("full:kernel=5", "the full cache has no settings"),
    ],
)
def test_bad_variants_say_why(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_variants([text])


def test_batches_end_where_texts_agree() -> None:
    assert tuned_batch([1030, 1040]) == 343  # 3 x 343 = 1029
    assert tuned_batch([400]) == 400
    assert tuned_batch([30]) == tuned_batch([300, 3000]) == 512


# ---- results ------------------------------------------------------------------------------------


def _record(sample: str = "a", **changes: Any) -> dict[str, Any]:
    record = {
        "task": "niah", "options": {}, "context": 512, "seed": 0, "sample": sample, "labels": {"kind": "passkey"},
        "setting": {"name": "restkv", "method": "restkv", "budget": 64, "prefill": "exact", "kv_type": "f16",
                    "evict": {"reserve": 128, "seed": 0}},
        "model": {"name": "m.gguf", "bytes": 1}, "cache": {"bytes": 1000, "cells": 64},
        "scores": {"score": 1.0, "log_prob": -1.0, "answer_tokens": 3},
    }  # fmt: skip
    return record | changes


def _full(sample: str, log_prob: float) -> dict[str, Any]:
    setting = {"name": "full", "method": "full", "budget": None, "prefill": None, "kv_type": "f16", "evict": {}}
    return _record(sample, setting=setting, scores={"score": 1.0, "log_prob": log_prob})


def test_results_are_appended_and_known_again(tmp_path: Path) -> None:
    with ResultFile(tmp_path / "new", "niah", resume=False) as results:
        results.add(_record("a"))
        assert results.has(_record("a", scores={})) and not results.has(_record("b"))
    with pytest.raises(ResultsError, match="is not empty; go on there with --resume"):
        ResultFile(tmp_path / "new", "niah", resume=False)
    with ResultFile(tmp_path / "new", "niah", resume=True) as results:
        assert results.has(_record("a")) and not results.has(_record("a", seed=1))
        results.add(_record("b"))
    assert len(read_results([tmp_path])) == 2


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for resume in (False, True):
        with pytest.raises(ResultsError):
            ResultFile(tmp_path / "file", "niah", resume=resume)


@pytest.mark.parametrize("torn", ['{"task": "ni', "{", '{"schema": 1, "task": "niah"'])
def test_a_torn_line_is_removed(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "niah.jsonl"
    whole = json.dumps(_record("a")) + "\n"
    file.write_text(whole + torn)
    said: list[str] = []
    assert len(read_results([file], said.append)) == 1 and file.read_text().endswith(torn)
    with ResultFile(tmp_path, "niah", resume=True, say=said.append) as results:
        assert len(results.records) == 1
    assert file.read_text() == whole and len(said) == 2 and all("torn" in text for text in said)


def test_a_last_line_without_its_end_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "niah.jsonl"
    file.write_text(json.dumps(_record("a")))
    with ResultFile(tmp_path, "niah", resume=True) as results:
        results.add(_record("b"))
    assert [record["sample"] for record in read_results([file])] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken}", "line 2: not JSON"),
        ("[1, 2]", "line 2: no result of restkv-eval"),
        ('{"task": "niah"}', "'context' is missing"),
        (json.dumps(_record("c", schema=9)), "written in form 9"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "niah.jsonl"
    file.write_text(f"{json.dumps(_record('a'))}\n{line}\n{json.dumps(_record('b'))}\n")
    with pytest.raises(ResultsError, match=re.escape(message)):
        read_results([file])


def test_empty_and_missing_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no results"):
        read_results([tmp_path])
    with pytest.raises(ResultsError, match="cannot be read"):
        read_results([tmp_path / "no.jsonl"])


def test_of_a_repeated_measurement_the_last_counts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(_record("a")) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps(_record("a", cache={"bytes": 5, "cells": 1})) + "\n")
    (found,) = read_results([tmp_path])
    assert found["cache"]["bytes"] == 5
    assert identity(found) == identity(_record("a"))


def test_a_record_from_before_an_option_is_that_of_its_default() -> None:
    def record(**evict: Any) -> dict[str, Any]:
        found = _record("a")
        return found | {"setting": found["setting"] | {"evict": evict}}

    new = record(reserve=128, kernel=EvictConfig().kernel)
    assert identity(new) == identity(record(reserve=128)) != identity(record(reserve=128, kernel=5))
    assert len(rows([new, record(reserve=128, seed=3)])) == 1
    assert len(rows([new, record(reserve=128, kernel=5)])) == 2


def test_rows_compare_with_the_full_cache_on_the_same_samples() -> None:
    records = [_full("a", -0.5), _full("b", -1.0), _record("a"), _record("b"), _record("c")]
    full, row = rows(records)
    assert full.full and not full.differences and (row.n, row.bytes) == (3, 1000)
    assert row.means["log_prob"].mean == -1.0 and "answer_tokens" not in row.means
    assert row.differences["log_prob"].n == 2 and row.differences["log_prob"].mean == -0.25
    json.dumps(row.json())
