"""What a method's row in the reference holds. Neither torch nor numba is loaded before a score is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    from ..attend import Attention
    from ..inputs import Float32, ScoreInputs

Float64 = npt.NDArray[np.float64]
# Names under which published code knows a method, each with what turns its parameters into ours.
Published = Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]


class HeadScores(Protocol):
    """The scores of one query head, made from one row of the window after the other, oldest first."""

    def row(self, logits: Float64, log_total: float, weight: float, top: int, rest: float) -> None:
        """One row. logits: [N], -inf where it may not look; log_total: log of the softmax denominator; weight: of the
        row; top: the most attended cell; rest: 1 - its attention, from the sum of the others."""

    def scores(self) -> Float64:
        """[N - w], after the last row."""


@dataclass(frozen=True)
class Queryless:
    """A method that looks at no query; all query heads of a KV head have the same scores.

    literal: [Hk, N - w] scores. lean: writes the scores [N - w] of one KV head.
    """

    literal: Callable[[ScoreInputs], Float32]
    lean: Callable[[ScoreInputs, int, Float32], None]
    published: Published = field(default_factory=dict)


@dataclass(frozen=True)
class Attending:
    """A method that looks at queries.

    literal: [H, N - w] scores before smoothing. lean: the same of one query head, row by row.
    row_weights: [rows] weights of the rows, oldest first; None: a plain sum.
    mean_rows: the parameter of this name has a meaning.
    """

    literal: Callable[[Attention, ScoreInputs], Tensor]
    lean: Callable[[ScoreInputs, int], HeadScores]
    row_weights: Callable[[ScoreInputs], Float64] | None = None
    mean_rows: bool = False
    published: Published = field(default_factory=dict)


def press(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of kvpress, which calls its scorers presses and names what they keep."""
    params = dict(params)
    if "keep" in params:
        params["budget"] = params.pop("keep")
    return params
