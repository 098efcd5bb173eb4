"""Every stage of a device against the CPU, and the CPU's own against the reference."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..config import CHECK_ERROR_MAX, CHECK_SETS_MIN, RECALL_SINKS
from ..errors import EvictionError, ExtraError, ModelError
from ..native import kernels
from ..plan.methods import TRAITS
from ..reference.inputs import ScoreInputs, Scores, prepare
from ..reference.select import reduce_heads
from .cases import MOVES, SCORES, TYPES, Arrays, MoveCase, ScoreCase, arrays_of, rows_of
from .devices import find_device
from .recalls import RECALLS, RecallCase, run_recall
from .result import DeviceCheck, Stage, StageCheck
from .speed import SHAPE, SMALL, measure_device

CPU = "CPU"
# A score is compared with its own size, or with this share of the largest one of its head when it is smaller still:
# there, digits of the attention are lost on every processor.
_FLOOR = 1e-6


def check_device(name: str, quick: bool = False) -> DeviceCheck:
    """Run the stages as graphs on a device of ggml ("CUDA0", "CPU") and compare them with our kernels on the CPU.

    quick: some cases only and no speed, in well under 2 seconds. A device that fails is a result, not an exception.
    Raises ConfigError when there is no such device, LibraryError when the library is missing.
    """
    device, start = find_device(name), time.perf_counter()
    found = _all(name, quick)
    shape = SMALL if device.kind == "cpu" else SHAPE
    right = {stage.verdict for stage in found} <= {"ok", "unsupported"}
    speed = measure_device(name, shape) if right and not quick else None
    return DeviceCheck(device, "cpu-fused", quick, tuple(found), time.perf_counter() - start, speed)


def check_fused(quick: bool = False) -> DeviceCheck:
    """The same for our own kernels on the CPU, against the reference (numba) and against numpy. Without numba the cases
    that need it count as not possible."""
    device, start = find_device(CPU), time.perf_counter()
    found = _all(None, quick)
    return DeviceCheck(device, "reference", quick, tuple(found), time.perf_counter() - start)


def _all(device: str | None, quick: bool) -> list[StageCheck]:
    """Every case on a device; None: our own kernels."""
    scores = [case for case in SCORES if case.quick or not quick]
    moves = [case for case in MOVES if case.quick or not quick]
    found = [_judged(_stage(case), case.name, functools.partial(_scores, case, device)) for case in scores]
    found += [_judged("compact", case.name, functools.partial(_moves, case, device)) for case in moves]
    if device is None:
        return found  # a recall's threads are the yardstick
    recalls = [case for case in RECALLS if case.quick or not quick]
    return found + [_judged("recall", case.name, functools.partial(_recalls, case, device)) for case in recalls]


def _stage(case: ScoreCase) -> Stage:
    # where W_o has no say, the attention is the score
    return "score" if TRAITS[case.params["method"]].wo else "attend"


def _judged(stage: Stage, case: str, run: Callable[[], dict[str, Any]]) -> StageCheck:
    """What `run` found, or why the device could not."""
    start = time.perf_counter()
    try:
        found = run()
    except (ModelError, ExtraError) as error:
        found = {"verdict": "unsupported", "reason": str(error)}
    except EvictionError as error:
        found = {"verdict": "failed", "reason": str(error)}
    return StageCheck(stage, case, **({"seconds": time.perf_counter() - start} | found))


# ---- attend and score --------------------------------------------------------------------------


def _scores(case: ScoreCase, device: str | None) -> dict[str, Any]:
    """Figures of one case; device None: the kernels against the reference."""
    arrays = arrays_of(case)
    values, extras = arrays.values, arrays.extras
    inputs = prepare(
        values["q_win"], values["k"], values["v"], values["wo"], extras.get("pos"), extras.get("sinks"), case.all_params
    )
    fused = kernels.run_stages(inputs, 0, packed=arrays.packed)
    start = time.perf_counter()
    if device is None:
        got, want = fused, _reference(case, arrays)
        seconds = 0.0
    else:
        got = kernels.run_stages(inputs, 0, device, case.tile, arrays.packed)
        want, seconds = fused, time.perf_counter() - start
    return _compared(inputs, got, want) | ({"seconds": seconds} if device is not None else {})


def _reference(case: ScoreCase, arrays: Arrays) -> Scores:
    from ..reference import score_lean  # numba, which takes seconds to load

    return score_lean(**arrays.values, **arrays.extras, **case.all_params)


def _compared(inputs: ScoreInputs, got: Scores, want: Scores) -> dict[str, Any]:
    error = relative_error(got[0], want[0])
    return _verdict(error, equal_sets(got[2], want[2], reduce_heads(want[1], inputs)))


def _verdict(error: float, sets: float) -> dict[str, Any]:
    reason = ""
    if not error <= CHECK_ERROR_MAX:  # also NaN
        reason = f"scores are off by up to {error:.1e} of their size; {CHECK_ERROR_MAX:.0e} is allowed"
    elif sets < CHECK_SETS_MIN:
        reason = f"{sets:.1%} of the chosen cells are the same; {CHECK_SETS_MIN:.1%} are asked for"
    return {"verdict": "mismatch" if reason else "ok", "error": error, "sets": sets, "reason": reason}


def relative_error(got: npt.NDArray[np.float32], want: npt.NDArray[np.float32]) -> float:
    """Largest |got - want| / |want| of scores [heads, cells]; infinite when one of them is no number."""
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return float("inf")
    size = np.abs(want).astype(np.float64)
    size = np.maximum(size, np.maximum(_FLOOR * size.max(axis=1, keepdims=True), np.finfo(np.float32).tiny))
    return float((np.abs(got.astype(np.float64) - want) / size).max())


def equal_sets(got: npt.NDArray[np.int32], want: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]) -> float:
    """Share of the cells of want [sets, C] that are in got too. A cell that differs counts as the same when its score
    [sets, cells] is, within the tolerance, that of the last one chosen: a tie at the cut."""
    same = 0
    for mine, theirs, y in zip(got, want, scores, strict=True):
        cut = float(y[theirs].min())
        near = CHECK_ERROR_MAX * abs(cut)
        for cell in theirs:
            same += bool(cell in mine or abs(float(y[cell]) - cut) <= near)
    return same / want.size


# ---- recall ------------------------------------------------------------------------------------


def _recalls(case: RecallCase, device: str) -> dict[str, Any]:
    """Figures of one case, against the threads of the CPU."""
    want, positions, _ = run_recall(case, None)
    got, chosen, seconds = run_recall(case, device)
    # the first and the last positions are chosen whatever their scores
    free = positions[:, RECALL_SINKS : positions.shape[1] - case.window]
    return _verdict(relative_error(got, want), equal_sets(chosen, free, want)) | {"seconds": seconds}


# ---- compact -----------------------------------------------------------------------------------


def _moves(case: MoveCase, device: str | None) -> dict[str, Any]:
    """Rows moved on the device, or by our own code on the host, against numpy's indexing."""
    k, v, kept = rows_of(case)
    want = [_taken(rows, kept) for rows in (k, v)]
    start = time.perf_counter()
    if device is None:
        for rows in (k, v):
            flat = rows.reshape(len(rows), -1)
            for head, cells in enumerate(kept):
                kernels.compact(flat, cells, offset=head * rows.shape[2], n_bytes=rows.shape[2])
    else:
        status = native.lib().restkv_compact_on(
            device.encode(), TYPES[case.type], case.kv_heads, case.head_size, case.cells, kernels.address(k),
            kernels.address(v), kernels.address(kept), case.kept, case.tile,
        )  # fmt: skip
        native.check(status)
    seconds = time.perf_counter() - start
    equal = all(np.array_equal(rows, right) for rows, right in zip((k, v), want, strict=True))
    reason = "" if equal else "rows were not moved bit for bit"
    return {"verdict": "ok" if equal else "mismatch", "rows_equal": equal, "seconds": seconds, "reason": reason}


def _taken(rows: npt.NDArray[np.uint8], kept: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Rows [cells, heads, bytes] after the move: the kept ones in front, the cells behind them as they were."""
    after = rows.copy()
    for head, cells in enumerate(kept):
        after[: len(cells), head] = rows[cells, head]
    return after
