"""Rotary position embedding as ggml computes it, YaRN and per-frequency factors included (ggml-cpu/ops.cpp)."""

from __future__ import annotations

import math

import torch

from .spec import RopeSpec

# llama.cpp's defaults; the families here do not override them (YaRN paper, section 3.2).
_BETA_FAST = 32.0
_BETA_SLOW = 1.0


class Rope:
    """Rotates queries and keys of one kind of layer.

    spec: constants. swa: of a sliding-window layer. neox: pairs are halves of the head instead of neighbours.
    factors: [n_rot / 2] divisors of the angles, or None.
    """

    def __init__(self, spec: RopeSpec, *, swa: bool, neox: bool, factors: torch.Tensor | None) -> None:
        self.n_rot, self.neox = spec.n_rot, neox
        base = spec.base_swa if swa else spec.base
        scale = spec.freq_scale_swa if swa else spec.freq_scale
        half = spec.n_rot // 2
        self._step = torch.tensor(base, dtype=torch.float32) ** (-2.0 / spec.n_rot)
        self._factors = torch.ones(half) if factors is None else factors
        self._scale, self._magnitude = scale, spec.attn_factor
        self._ramp = torch.zeros(half)
        if spec.yarn:
            self._ramp = _yarn_ramp(spec.n_rot, spec.n_ctx_orig, base)
            self._magnitude *= 1.0 + 0.1 * math.log(1.0 / scale)

    def __call__(self, x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        """x [heads, n, head_dim], pos [n] -> the same shape, rotated."""
        angle = pos.to(torch.float32)
        columns = []
        # ggml multiplies the angle up step by step in float32; at large positions the rounding is visible.
        for _ in range(self.n_rot // 2):
            columns.append(angle)
            angle = angle * self._step
        extra = torch.stack(columns, dim=1) / self._factors
        theta = self._scale * extra * (1 - self._ramp) + extra * self._ramp
        cos, sin = torch.cos(theta) * self._magnitude, torch.sin(theta) * self._magnitude
        turned, rest = x[..., : self.n_rot], x[..., self.n_rot :]
        if self.neox:
            a, b = turned[..., : self.n_rot // 2], turned[..., self.n_rot // 2 :]
            out = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
        else:
            a, b = turned[..., 0::2], turned[..., 1::2]
            out = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).reshape(turned.shape)
        return torch.cat([out, rest], dim=-1)


def _yarn_ramp(n_rot: int, n_ctx_orig: int, base: float) -> torch.Tensor:
    """Share of extrapolation per frequency, [n_rot / 2]: 1 for the fast ones, 0 for the slow ones."""

    def dim_of(turns: float) -> float:
        return n_rot * math.log(n_ctx_orig / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(0.0, math.floor(dim_of(_BETA_FAST))), min(n_rot - 1.0, math.ceil(dim_of(_BETA_SLOW)))
    ramp = (torch.arange(n_rot // 2) - low) / max(0.001, high - low)
    return 1 - ramp.clamp(0, 1)
