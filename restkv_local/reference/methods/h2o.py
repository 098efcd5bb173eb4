"""H2O (Zhang et al., 2023): the attention of every query that is given, summed."""

from __future__ import annotations

from .attention import AttentionSum, attention_sum
from .rows import Attending

REFERENCE = Attending(attention_sum, AttentionSum)
