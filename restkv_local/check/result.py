"""What a check found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..config import CHECK_ERROR_MAX, CHECK_SETS_MIN
from .devices import Device

Verdict = Literal["ok", "mismatch", "unsupported", "failed"]
Stage = Literal["attend", "score", "compact", "recall"]


@dataclass(frozen=True)
class StageCheck:
    """One stage on one case.

    stage: "attend" (attention of the window), "score" (and the distance to the output), both with the sets that follow
        from them, "compact" (rows moved), or "recall" (attention over an archive, and the cells that it chooses).
        case: what it ran on. verdict: "ok"; "mismatch"; "unsupported" (the device
        lacks an operation, and such layers go through the host); "failed" (the device reported an error).
    error: largest relative error of a score; sets: share of the chosen cells that are the same, ties aside;
    rows_equal: every byte of the cache as it should be. None where a stage has no such figure.
    seconds: with the transfers. reason: a sentence, "" when ok.
    """

    stage: Stage
    case: str
    verdict: Verdict
    error: float | None = None
    sets: float | None = None
    rows_equal: bool | None = None
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class DeviceSpeed:
    """Times of one layer on a device, the shortest of several rounds, in seconds; rates in bytes per second.

    shape: heads, kv_heads, head_size, cells, budget, window, type. attend_seconds: attention and scores as a graph, and
    what comes back; choose_seconds: smooth and select on one thread of the host; compact_seconds: rows moved.
    copy_bytes_per_s, compact_bytes_per_s: read and written, of a plain copy and of the moves;
    attend_bytes_per_s: of K and V.
    """

    shape: dict[str, Any]
    attend_seconds: float
    choose_seconds: float
    compact_seconds: float
    copy_bytes_per_s: float
    attend_bytes_per_s: float
    compact_bytes_per_s: float


@dataclass(frozen=True)
class DeviceCheck:
    """Every stage of one device.

    yardstick: what it was compared with: "cpu-fused" (our kernels) or "reference" (numba). speed: None when not
    measured. seconds: of the whole check.
    """

    device: Device
    yardstick: str
    quick: bool
    stages: tuple[StageCheck, ...]
    seconds: float
    speed: DeviceSpeed | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst that was found; "unsupported" only when nothing ran."""
        order: tuple[Verdict, ...] = ("mismatch", "failed", "ok")
        found = {stage.verdict for stage in self.stages}
        return next((verdict for verdict in order if verdict in found), "unsupported")

    @property
    def reason(self) -> str:
        """What is wrong or missing first, or ""."""
        worst = self.verdict
        bad = (stage for stage in self.stages if stage.verdict == (worst if worst != "ok" else "unsupported"))
        first = next(bad, None)
        return "" if first is None else f"{first.stage} of {first.case}: {first.reason}"

    @property
    def error(self) -> float | None:
        """Largest relative error of all scores."""
        return max((stage.error for stage in self.stages if stage.error is not None), default=None)

    @property
    def sets(self) -> float | None:
        """Smallest share of equal sets."""
        return min((stage.sets for stage in self.stages if stage.sets is not None), default=None)

    @property
    def rows_equal(self) -> bool | None:
        """Whether all rows moved bit for bit; None when none were moved."""
        moved = [stage.rows_equal for stage in self.stages if stage.rows_equal is not None]
        return all(moved) if moved else None

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values, with the tolerances that it was judged by."""
        return {
            "device": self.device.to_json(),
            "verdict": self.verdict,
            "reason": self.reason,
            "yardstick": self.yardstick,
            "quick": self.quick,
            "tolerances": {"error": CHECK_ERROR_MAX, "sets": CHECK_SETS_MIN},
            "error": self.error,
            "sets": self.sets,
            "rows_equal": self.rows_equal,
            "seconds": self.seconds,
            "stages": [asdict(stage) for stage in self.stages],
            "speed": None if self.speed is None else asdict(self.speed),
        }
