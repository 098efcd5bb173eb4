"""What the native stages are held against: every stage in torch, readable, and a lean version for long texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lean import score_lean
    from .scores import score

__all__ = ["score", "score_lean"]


def __getattr__(name: str) -> Any:
    # torch and numba take seconds to import, and torch is optional: only who uses them pays
    if name == "score":
        from .scores import score

        return score
    if name == "score_lean":
        from .lean import score_lean

        return score_lean
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
