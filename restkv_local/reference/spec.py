"""What a GGUF's settings say about the forward pass of its family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError
from .weights import Weights


@dataclass(frozen=True)
class Family:
    """What a family does that its settings and tensors do not say.

    neox: RoPE turns halves of a head instead of neighbours. gelu: gate of the FFN. scale_embd: embeddings are
    multiplied by sqrt(n_embd). scale_query: queries carry the scale of the attention when they are rounded and
    stored. norm_experts: the weights of the chosen experts are normalised. swa_pattern: every n-th layer has full
    attention (0: all). rope_factors: reads per-frequency factors. oai: gate and routing of gpt-oss.
    """

    neox: bool
    gelu: bool = False
    scale_embd: bool = False
    scale_query: bool = False
    norm_experts: bool = True
    swa_pattern: int = 0
    rope_factors: bool = False
    oai: bool = False


FAMILIES = {
    "llama": Family(neox=False, rope_factors=True),
    "qwen2": Family(neox=True),
    "qwen3": Family(neox=True),
    "qwen2moe": Family(neox=True, norm_experts=False),
    "qwen3moe": Family(neox=True),
    "gemma": Family(neox=True, gelu=True, scale_embd=True, scale_query=True),
    "gemma2": Family(neox=True, gelu=True, scale_embd=True, scale_query=True, swa_pattern=2),
    "gemma3": Family(neox=True, gelu=True, scale_embd=True, scale_query=True, swa_pattern=6),
    "phi3": Family(neox=True, scale_query=True, rope_factors=True),
    "gpt-oss": Family(neox=True, norm_experts=False, swa_pattern=2, oai=True),
}


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding: base and freq_scale of full and of sliding-window layers; yarn: scale per frequency.

    attn_factor multiplies the rotated values.
    """

    n_rot: int
    base: float
    base_swa: float
    freq_scale: float
    freq_scale_swa: float
    yarn: bool
    attn_factor: float
    n_ctx_orig: int


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and constants of a model. n_head, n_head_kv and swa have one entry per layer.

    query_scale multiplies the queries after RoPE, attn_scale the logits; the product is the scale of the attention.
    """

    arch: str
    family: Family
    n_layer: int
    n_embd: int
    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    head_dim: int
    n_ctx_train: int
    rms_eps: float
    rope: RopeSpec
    swa: tuple[bool, ...]
    n_swa: int
    query_scale: float
    attn_scale: float
    attn_softcap: float
    final_softcap: float
    n_expert: int
    n_expert_used: int
    expert_scale: float

    @staticmethod
    def read(weights: Weights) -> ModelSpec:
        """Raises ModelError for a family that the reference does not know."""
        arch = weights.arch
        if arch not in FAMILIES:
            raise ModelError(f"the reference does not know the family '{arch}'; it knows {', '.join(FAMILIES)}")
        family, get = FAMILIES[arch], weights.arch_setting
        n_layer, n_embd = int(get("block_count")), int(get("embedding_length"))
        n_head = _per_layer(get("attention.head_count"), n_layer)
        head_dim = int(get("attention.key_length", n_embd // n_head[0]))
        if int(get("attention.value_length", head_dim)) != head_dim:
            raise ModelError("keys and values have different head sizes; the reference needs equal ones")
        n_ctx_train = int(get("context_length"))
        swa, n_swa = _sliding_windows(arch, family, get, n_layer)
        # The 27B models of Gemma 2 and 3 scale by the width per head instead of the head size.
        wide = (arch, n_layer) in (("gemma2", 46), ("gemma3", 62))
        scale = 1.0 / math.sqrt(n_embd // n_head[0] if wide else head_dim)
        if arch == "llama":
            scale = float(get("attention.scale", 0.0)) or scale
        return ModelSpec(
            arch=arch, family=family, n_layer=n_layer, n_embd=n_embd, n_head=n_head,
            n_head_kv=_per_layer(get("attention.head_count_kv", list(n_head)), n_layer), head_dim=head_dim,
            n_ctx_train=n_ctx_train, rms_eps=float(get("attention.layer_norm_rms_epsilon")),
            rope=_rope(arch, get, head_dim, n_ctx_train), swa=swa, n_swa=n_swa,
            query_scale=scale if family.scale_query else 1.0, attn_scale=1.0 if family.scale_query else scale,
            attn_softcap=float(get("attn_logit_softcapping", 50.0)) if arch == "gemma2" else 0.0,
            final_softcap=_final_softcap(arch, get),
            n_expert=int(get("expert_count", 0)), n_expert_used=int(get("expert_used_count", 0)),
            expert_scale=float(get("expert_weights_scale", 0.0)) or 1.0,
        )  # fmt: skip


def _per_layer(value: int | list[int], n_layer: int) -> tuple[int, ...]:
    return tuple(int(n) for n in value) if isinstance(value, list) else (int(value),) * n_layer


def _final_softcap(arch: str, get: Any) -> float:
    default = {"gemma2": 30.0}.get(arch, 0.0)
    return float(get("final_logit_softcapping", default)) if arch in ("gemma2", "gemma3") else 0.0


def _sliding_windows(arch: str, family: Family, get: Any, n_layer: int) -> tuple[tuple[bool, ...], int]:
    n_swa = int(get("attention.sliding_window", 4096 if arch == "gemma2" else 0))
    if not family.swa_pattern or not n_swa:
        return (False,) * n_layer, 0
    pattern = get("attention.sliding_window_pattern", family.swa_pattern)
    if isinstance(pattern, list):
        return tuple(bool(flag) for flag in pattern[:n_layer]), n_swa
    every = int(pattern)
    return tuple(every == 0 or il % every < every - 1 for il in range(n_layer)), n_swa


def _rope(arch: str, get: Any, head_dim: int, n_ctx_train: int) -> RopeSpec:
    kind = str(get("rope.scaling.type", "linear"))
    if kind not in ("none", "linear", "longrope", "yarn"):
        raise ModelError(f"RoPE scaling '{kind}' is unknown to the reference; it knows none, linear, longrope and yarn")
    factor = float(get("rope.scaling.factor", 0.0)) or float(get("rope.scale_linear", 0.0)) or 1.0
    base, scale = float(get("rope.freq_base", 10000.0)), 1.0 if kind == "none" else 1.0 / factor
    # Gemma 2 and gpt-oss rotate their sliding-window layers like the others unless told; Gemma 3 has a base of its own.
    same = arch in ("gemma2", "gpt-oss")
    return RopeSpec(
        n_rot=int(get("rope.dimension_count", head_dim)), base=base,
        base_swa=float(get("rope.freq_base_swa", base if same else 10000.0)),
        freq_scale=scale, freq_scale_swa=1.0 / factor if same else 1.0,
        yarn=kind == "yarn", attn_factor=float(get("rope.scaling.attn_factor", 1.0)),
        n_ctx_orig=int(get("rope.scaling.original_context_length", n_ctx_train)),
    )  # fmt: skip
