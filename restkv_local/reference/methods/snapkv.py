"""SnapKV (Li et al., 2024): the attention of the window, summed over its rows. PyramidKV (Cai et al., 2024) and AdaKV
(Feng et al., 2024) are the same with an allocation of their own."""

from __future__ import annotations

from .attention import AttentionSum, attention_sum
from .rows import Attending

REFERENCE = Attending(
    attention_sum,
    AttentionSum,
    mean_rows=True,
    published={
        "pyramidkv": lambda params: params | {"allocation": "pyramidkv"},
        "adakv": lambda params: params | {"allocation": "adakv", "mean_rows": True},
    },
)
