"""The layers of the llama family of models in float32: norms, projections, RoPE, FFN and experts.

One class serves every family of spec.FAMILIES: biases, QK-norm, fused QKV, post-norms and experts are there when the
file holds their tensors. Mirrors src/models/*.cpp of llama.cpp.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from .rope import Rope
from .spec import ModelSpec
from .weights import Linear, Weights

_OAI_ALPHA = 1.702
_OAI_LIMIT = 7.0
_EXPERT_SUM_MIN = 6.103515625e-5  # smallest normal float16, as in llama.cpp


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def _gelu(x: torch.Tensor) -> torch.Tensor:
    """ggml's CPU backend reads the tanh form from a table of float16 values; beyond +-10 it is x or 0."""
    half = x.to(torch.float16).to(torch.float32)
    table = F.gelu(half, approximate="tanh").to(torch.float16).to(torch.float32)
    return torch.where(x >= 10, x, torch.where(x <= -10, torch.zeros_like(x), table))


class Layer:
    """One transformer block without its attention over the cache."""

    def __init__(self, weights: Weights, spec: ModelSpec, il: int, rope: Rope) -> None:
        self._spec, self._rope = spec, rope
        self.n_head, self.n_head_kv, self.swa = spec.n_head[il], spec.n_head_kv[il], spec.swa[il]
        at = f"blk.{il}"

        def optional(name: str) -> torch.Tensor | None:
            return weights.optional(f"{at}.{name}.weight")

        def linear(name: str) -> Linear:
            return weights.linear(f"{at}.{name}")

        self._attn_norm = weights.tensor(f"{at}.attn_norm.weight")
        if weights.has(f"{at}.attn_qkv.weight"):
            self._qkv = [linear("attn_qkv")]
        else:
            self._qkv = [linear("attn_q"), linear("attn_k"), linear("attn_v")]
        self.wo = linear("attn_output")
        self.sinks = optional("attn_sinks")
        self._q_norm, self._k_norm = optional("attn_q_norm"), optional("attn_k_norm")
        # In gpt-oss the norm before the FFN bears the name of Gemma's norm after the attention.
        self._attn_post = None if spec.family.oai else optional("post_attention_norm")
        self._ffn_norm = weights.tensor(f"{at}.{'post_attention_norm' if spec.family.oai else 'ffn_norm'}.weight")
        self._ffn_post = optional("post_ffw_norm")
        self._router = linear("ffn_gate_inp") if spec.n_expert else None
        kind = "_exps" if spec.n_expert else ""
        self._up, self._down = linear(f"ffn_up{kind}"), linear(f"ffn_down{kind}")
        self._gate = linear(f"ffn_gate{kind}") if weights.has(f"{at}.ffn_gate{kind}.weight") else None
        self._shared: list[Linear] = []
        self._shared_gate = optional("ffn_gate_inp_shexp")
        if weights.has(f"{at}.ffn_up_shexp.weight"):
            self._shared = [linear("ffn_gate_shexp"), linear("ffn_up_shexp"), linear("ffn_down_shexp")]

    def qkv(self, x: torch.Tensor, pos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [n, n_embd] -> q [heads, n, d] (scaled) and k [kv_heads, n, d] after RoPE, v [kv_heads, n, d]."""
        spec, d = self._spec, self._spec.head_dim
        x = _rms_norm(x, self._attn_norm, spec.rms_eps)
        sizes = [self.n_head * d, self.n_head_kv * d, self.n_head_kv * d]
        parts = torch.split(self._qkv[0](x), sizes, dim=1) if len(self._qkv) == 1 else [part(x) for part in self._qkv]
        q, k, v = (part.reshape(x.shape[0], -1, d).transpose(0, 1).contiguous() for part in parts)
        if self._q_norm is not None and self._k_norm is not None:
            q, k = _rms_norm(q, self._q_norm, spec.rms_eps), _rms_norm(k, self._k_norm, spec.rms_eps)
        return self._rope(q, pos) * spec.query_scale, self._rope(k, pos), v

    def finish(self, x: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """x [n, n_embd] and the heads' output [n, heads * d] -> the block's output [n, n_embd]."""
        eps = self._spec.rms_eps
        out = self.wo(heads)
        if self._attn_post is not None:
            out = _rms_norm(out, self._attn_post, eps)
        x = x + out
        out = self._ffn(_rms_norm(x, self._ffn_norm, eps))
        if self._ffn_post is not None:
            out = _rms_norm(out, self._ffn_post, eps)
        return x + out

    def _ffn(self, x: torch.Tensor) -> torch.Tensor:
        if self._router is not None:
            return self._experts(x, self._router)
        if self._gate is None:  # Phi-3 keeps gate and up in one matrix
            gate, up = self._up(x).chunk(2, dim=1)
            return self._down(self._activate(gate, up))
        return self._down(self._activate(self._gate(x), self._up(x)))

    def _activate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if self._spec.family.oai:
            gate, up = gate.clamp(max=_OAI_LIMIT), up.clamp(-_OAI_LIMIT, _OAI_LIMIT)
            return gate * torch.sigmoid(_OAI_ALPHA * gate) * (up + 1)
        return (_gelu(gate) if self._spec.family.gelu else F.silu(gate)) * up

    def _experts(self, x: torch.Tensor, router: Linear) -> torch.Tensor:
        spec, family = self._spec, self._spec.family
        logits = router(x)
        probs = logits if family.oai else torch.softmax(logits, dim=1)
        share, chosen = probs.topk(spec.n_expert_used, dim=1)
        if family.oai:
            share = torch.softmax(share, dim=1)
        if family.norm_experts:
            share = share / share.sum(dim=1, keepdim=True).clamp(min=_EXPERT_SUM_MIN)
        share = share * spec.expert_scale
        out = torch.zeros_like(x)
        for index in range(spec.n_expert):
            rows, slot = torch.nonzero(chosen == index, as_tuple=True)
            if rows.numel() == 0 or self._gate is None:
                continue
            part = x[rows]
            hidden = self._activate(self._gate.expert(index)(part), self._up.expert(index)(part))
            out.index_add_(0, rows, self._down.expert(index)(hidden) * share[rows, slot, None])
        if self._shared and self._shared_gate is not None:
            gate, up, down = self._shared
            weight = torch.sigmoid(x @ self._shared_gate.reshape(-1, 1))
            out = out + down(self._activate(gate(x), up(x))) * weight
        return out


class Transformer:
    """A model's weights in float32.

    path: GGUF file. n_ctx: context in positions, which chooses between long and short RoPE factors; None: as trained.
    round_activations: see Weights. Raises ModelError.
    """

    def __init__(self, path: str | Path, *, n_ctx: int | None = None, round_activations: bool = True) -> None:
        weights = Weights(path, round_activations=round_activations)
        self.spec = spec = ModelSpec.read(weights)
        factors = self._rope_factors(weights, spec.n_ctx_train if n_ctx is None else n_ctx)
        neox = spec.family.neox
        ropes = [Rope(spec.rope, swa=swa, neox=neox, factors=factors) for swa in (False, True)]
        self.layers = [Layer(weights, spec, il, ropes[spec.swa[il]]) for il in range(spec.n_layer)]
        self._embed = weights.linear("token_embd")
        self._norm = weights.tensor("output_norm.weight")
        self._head = weights.linear("output") if weights.has("output.weight") else self._embed
        self.n_vocab = int(self._embed.weight.shape[0])

    def _rope_factors(self, weights: Weights, n_ctx: int) -> torch.Tensor | None:
        if not self.spec.family.rope_factors:
            return None
        if weights.has("rope_freqs.weight"):
            return weights.tensor("rope_freqs.weight")
        kind = "long" if n_ctx > self.spec.rope.n_ctx_orig else "short"
        return weights.optional(f"rope_factors_{kind}.weight")

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [n] -> [n, n_embd]."""
        x = self._embed.weight[tokens]
        return x * float(self.spec.n_embd) ** 0.5 if self.spec.family.scale_embd else x

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[n, n_embd] -> [n, n_vocab]."""
        out = self._head(_rms_norm(x, self._norm, self.spec.rms_eps))
        cap = self.spec.final_softcap
        return cap * torch.tanh(out / cap) if cap else out
