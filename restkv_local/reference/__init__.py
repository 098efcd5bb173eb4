"""What the native stages are held against: every stage in torch, readable, and a lean version for long texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ExtraError

if TYPE_CHECKING:
    from .lean import score_lean
    from .scores import score

__all__ = ["score", "score_lean"]


def __getattr__(name: str) -> Any:
    # torch and numba take seconds to import, and are of an extra: only who uses them pays
    if name == "score":
        try:
            from .scores import score
        except ModuleNotFoundError as error:
            raise missing("torch", error) from None

        return score
    if name == "score_lean":
        from .lean import score_lean

        return score_lean
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def missing(package: str, error: ModuleNotFoundError) -> ImportError:
    """What to raise where a package of the extra is not there; the error itself, where it is of another."""
    if error.name != package:
        return error
    return ExtraError(
        f"the reference needs {package}: run 'pip install {package}', or install restkv-local with its extra "
        f"'reference'"
    )
