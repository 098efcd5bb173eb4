"""Every golden case against the three score functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from score_cases import SCORES, assert_same_sets, assert_scores_close, score_function

GOLDEN = Path(__file__).parents[1] / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "index.json").read_text())
BY_NAME = {case["name"]: case for case in CASES}

EXACT = 2e-5
LOOSE = 2e-3  # attention so close to 1 that float32 loses digits

each_function = pytest.mark.parametrize("function", SCORES)


def load(case: dict[str, Any]) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / case["file"]) as file:
        return {name: file[name] for name in file.files}


def run(function: str, case: dict[str, Any], data: dict[str, np.ndarray], **changes: Any) -> Any:
    arrays = [data[name].astype(np.float32) for name in ("q", "k", "v", "wo")]
    return score_function(function)(*arrays, **{**case["params"], **changes})


def tolerance(case: dict[str, Any]) -> float:
    return LOOSE if case.get("loose") else EXACT


@each_function
@pytest.mark.parametrize("name", [name for name, case in BY_NAME.items() if not case.get("saturated")])
def test_scores_and_sets(name: str, function: str) -> None:
    case = BY_NAME[name]
    data = load(case)
    raw, smoothed, indices, kernel_sizes, shifts = run(function, case, data)
    if "raw" in data:
        assert_scores_close(raw, data["raw"], tolerance(case))
        assert_scores_close(smoothed, data["smoothed"], tolerance(case))
    heads = len(data["q"])
    np.testing.assert_array_equal(kernel_sizes, data.get("kernel_sizes", np.full(heads, case["params"]["kernel"])))
    np.testing.assert_array_equal(shifts, data.get("shifts", np.zeros(heads)))
    assert kernel_sizes.dtype == shifts.dtype == indices.dtype == np.int32
    if case["ties"]:
        assert_same_sets(indices, data["indices"], data["smoothed"], tolerance(case))
    else:
        np.testing.assert_array_equal(indices, data["indices"])


@each_function
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("name", [case["name"] for case in CASES if case["per_kv_head"]])
def test_one_set_per_kv_head(name: str, reduce: str, function: str) -> None:
    case = BY_NAME[name]
    data = load(case)
    raw, smoothed, indices, _, _ = run(function, case, data, reduce=reduce)
    # the scores stay per query head: only the choice is shared
    assert_scores_close(raw, data["raw"], tolerance(case))
    assert_scores_close(smoothed, data["smoothed"], tolerance(case))
    groups = data["smoothed"].reshape(len(data["k"]), -1, smoothed.shape[1])
    reduced = groups.mean(axis=1) if reduce == "mean" else groups.max(axis=1)
    assert_same_sets(indices, data[f"kv_{reduce}_indices"], reduced, tolerance(case))


@each_function
def test_saturated_attention(function: str) -> None:
    case = BY_NAME["rk_saturated"]
    data = load(case)
    raw, smoothed, indices, kernel_sizes, shifts = run(function, case, data)
    assert np.isfinite(raw).all() and np.isfinite(smoothed).all()
    for h, official in enumerate(data["raw"]):
        saturated = np.flatnonzero(~np.isfinite(official))
        assert np.isin(saturated, indices[h]).all()
    assert not np.isfinite(data["raw"]).all()  # else the case tests nothing
    for got, official in ((raw, data["raw"]), (smoothed, data["smoothed"])):
        plain = np.isfinite(official)
        np.testing.assert_allclose(got[plain], official[plain], rtol=EXACT)
    np.testing.assert_array_equal(kernel_sizes, data["kernel_sizes"])
    np.testing.assert_array_equal(shifts, data["shifts"])


@pytest.mark.parametrize("name", [name for name, case in BY_NAME.items() if not case.get("saturated")])
def test_native_float16(name: str) -> None:
    case = BY_NAME[name]
    data = load(case)
    arrays = (data["q"].astype(np.float32), data["k"], data["v"], data["wo"].astype(np.float32))
    assert arrays[1].dtype == np.float16
    raw, smoothed, indices, _, _ = score_function("native")(*arrays, **case["params"])
    if "raw" in data:
        assert_scores_close(raw, data["raw"], tolerance(case))
        assert_scores_close(smoothed, data["smoothed"], tolerance(case))
        assert_same_sets(indices, data["indices"], data["smoothed"], tolerance(case))
    else:
        np.testing.assert_array_equal(indices, data["indices"])


def test_every_file_is_listed() -> None:
    other = json.loads((GOLDEN / "index_other.json").read_text())  # tests/native/test_methods.py
    assert {case["file"] for case in [*CASES, *other]} == {path.name for path in GOLDEN.glob("*.npz")}
