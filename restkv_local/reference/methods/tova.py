"""TOVA (Oren et al., 2024): the attention of the last query."""

from __future__ import annotations

from .attention import AttentionSum, attention_sum
from .rows import Attending, press

REFERENCE = Attending(attention_sum, AttentionSum, published={"kvpress_TOVAPress": press})
