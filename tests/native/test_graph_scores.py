"""Scores of ggml graphs on every device of the build: published ones, and those of the fused stages.

On the CPU, and where the same code computes (RPC), to the last bit; elsewhere within the digits of docs/numerics.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_golden import CASES, load, tolerance

import devices
from graph_cases import DEVICE_ERROR, assert_most_equal, each_device
from restkv_local.errors import ConfigError, ModelError
from restkv_local.native import kernels
from restkv_local.reference.inputs import prepare
from score_cases import assert_same_sets, assert_scores_close, gapped_positions, random_arrays

pytestmark = pytest.mark.usefixtures("library")

# Methods and options that have a graph.
SCORED = [
    case
    for case in CASES
    if case["params"]["method"] in ("restkv", "snapkv", "keydiff", "knorm")
]


def arrays_of(case: dict[str, Any], data: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [data[name].astype(np.float32) for name in ("q", "k", "v", "wo")]


def error_of(case: dict[str, Any], device: str) -> float:
    return tolerance(case) if devices.computes_as_the_cpu(device) else max(tolerance(case), DEVICE_ERROR)


@each_device
@pytest.mark.parametrize("name", [case["name"] for case in SCORED if not case.get("saturated")])
def test_golden(name: str, device: str) -> None:
    case = next(case for case in SCORED if case["name"] == name)
    data = load(case)
    error = error_of(case, device)
    raw, smoothed, indices, kernel_sizes, shifts = kernels.score(
        *arrays_of(case, data), backend=f"graph:{device}", **case["params"]
    )
    if "raw" in data:
        assert_scores_close(raw, data["raw"], error)
        assert_scores_close(smoothed, data["smoothed"], error)
    heads = len(data["q"])
    np.testing.assert_array_equal(kernel_sizes, data.get("kernel_sizes", np.full(heads, case["params"]["kernel"])))
    np.testing.assert_array_equal(shifts, data.get("shifts", np.zeros(heads)))
    if case["ties"]:
        assert_same_sets(indices, data["indices"], data["smoothed"], error)
    elif not devices.computes_as_the_cpu(device):
        assert_most_equal(list(indices), list(data["indices"]))
    else:
        np.testing.assert_array_equal(indices, data["indices"])


@each_device
def test_saturated_attention(device: str) -> None:
    case = next(case for case in SCORED if case.get("saturated"))
    data = load(case)
    arrays = arrays_of(case, data)
    error = error_of({}, device)
    raw, smoothed, indices, *_ = kernels.score(*arrays, backend=f"graph:{device}", **case["params"])
    assert np.isfinite(raw).all() and np.isfinite(smoothed).all()
    saturated = ~np.isfinite(data["raw"])
    assert saturated.any()
    for h in range(len(raw)):
        assert np.isin(np.flatnonzero(saturated[h]), indices[h]).all()
    np.testing.assert_allclose(raw[~saturated], data["raw"][~saturated], rtol=error)
    # where the published code has infinity, both ways give the same true change of the output
    np.testing.assert_allclose(raw, kernels.score(*arrays, **case["params"])[0], rtol=error)
    # and so where each query has a distance of its own
    params = case["params"] | {"metric_mode": "before"}
    graph, fused = (kernels.score(*arrays, backend=way, **params)[0] for way in (f"graph:{device}", "cpu"))
    assert np.isfinite(graph).all()
    np.testing.assert_allclose(graph, fused, rtol=error)


@each_device
@pytest.mark.parametrize("changes", [{}, {"metric_mode": "before"}, {"method": "snapkv"}], ids=str)
def test_attention_sinks(changes: dict[str, Any], device: str) -> None:
    """One of them takes nearly all of the attention of its head."""
    data = random_arrays(12, n=260, window=16)
    sinks = np.linspace(-2.0, 3.0, len(data["q_win"])).astype(np.float32)
    sinks[-1] = 40.0
    params = {"method": "restkv", "budget": 90, "window": 16, **changes}
    fused, graph = (kernels.score(**data, sinks=sinks, backend=way, **params) for way in ("cpu", f"graph:{device}"))
    assert_scores_close(graph[0], fused[0], error_of({}, device))
    assert 0 < np.abs(fused[0][-1]).max() < 1e-6 * np.abs(fused[0][0]).max()


@each_device
@pytest.mark.parametrize("floats", [8000, 20000])
@pytest.mark.parametrize("scale", [40, 2000])
def test_tiles_change_nothing(floats: int, scale: int, device: str) -> None:
    data = random_arrays(7, heads=6, kv_heads=3, n=300, d=32, window=16)
    params = {"method": "restkv", "budget": 100, "window": 16, "scale": scale, "reduce": "mean"}
    inputs = prepare(data["q_win"], data["k"], data["v"], data["wo"], None, None, params)
    whole, tiled = kernels.run_stages(inputs, 1, device), kernels.run_stages(inputs, 1, device, floats)
    fused = kernels.run_stages(inputs, 1)
    for got in (whole, tiled):
        assert_scores_close(got[0], fused[0], error_of({}, device))
        for mine, theirs in zip(got[2:], fused[2:], strict=True):
            np.testing.assert_array_equal(mine, theirs)


@each_device
def test_positions_with_gaps(device: str) -> None:
    data = random_arrays(8, n=260, window=16)
    pos = gapped_positions(8, 2, 260, 16)
    params = {"method": "restkv", "budget": 90, "window": 16, "scale": 5, "reduce": "max"}
    fused, graph = (kernels.score(**data, pos=pos, backend=way, **params) for way in ("cpu", f"graph:{device}"))
    assert_scores_close(graph[1], fused[1], error_of({}, device))
    assert (fused[3] > 21).any() or (fused[4] != 0).any()  # a drift that acts
    for mine, theirs in zip(graph[2:], fused[2:], strict=True):
        np.testing.assert_array_equal(mine, theirs)


@each_device
@pytest.mark.parametrize("sharp", [0.5, 4.0])
def test_drift_is_right_to_a_position(sharp: float, device: str) -> None:
    """With one position to a step the kernel and the shift show the drift, which a search without a sort finds."""
    data = random_arrays(11, n=1500, d=32, window=16)
    data["q_win"] = data["q_win"] * np.float32(sharp)
    params = {"method": "restkv", "budget": 400, "window": 16, "scale": 1, "kernel": 1}
    fused, graph = (kernels.score(**data, backend=way, **params) for way in ("cpu", f"graph:{device}"))
    assert len(set(fused[3])) > 2, "heads drift apart"
    assert np.abs(graph[3] - fused[3]).max() <= 2 and np.abs(graph[4] - fused[4]).max() <= 1


@each_device
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "keydiff"}, {"method": "knorm"}, {"indicator": "attention"}, {"indicator": "attention-value-norm"},
        {"rows": "last"}, {"metric_mode": "before"}, {"metric_mode": "before", "use_norm": True, "use_wo": False},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("floats", [0, 4000])
def test_scores_of_other_methods(changes: dict[str, Any], floats: int, device: str) -> None:
    data = random_arrays(11, heads=6, kv_heads=3, n=260, d=32, window=16)
    params = {"method": "restkv", "budget": 90, "window": 16, "reduce": "mean", **changes}
    inputs = prepare(data["q_win"], data["k"], data["v"], data["wo"], None, None, params)
    fused, graph = kernels.run_stages(inputs, 1), kernels.run_stages(inputs, 1, device, floats)
    error = error_of({}, device)
    # a cosine near 0 has digits that cancel
    np.testing.assert_allclose(graph[0], fused[0], rtol=error, atol=error if params["method"] == "keydiff" else 0)
    assert_most_equal(list(graph[2]), list(fused[2]))


def test_what_has_no_graph_is_refused() -> None:
    data = random_arrays(9)
    params = {"method": "restkv", "budget": 60, "window": 16}
    with pytest.raises(ConfigError, match="no device 'GPU9'"):
        kernels.score(**data, backend="graph:GPU9", **params)
    with pytest.raises(ConfigError, match="backend must be"):
        kernels.score(**data, backend="gpu", **params)
    with pytest.raises(ModelError, match="not scored by a graph"):
        kernels.score(**data, backend="graph:CPU", **params | {"method": "streamingllm"})
    # too small a tile for a graph of bounded size
    inputs = prepare(data["q_win"], data["k"], data["v"], data["wo"], None, None, params)
    with pytest.raises(ModelError, match="cannot run a graph for 200 cells"):
        kernels.run_stages(inputs, 1, "CPU", 1)
