"""Random models whose memory is not that of a plain transformer.

LFM2 has recurrent layers beside attention, MiniMax-M3 a second cache of keys that chooses blocks.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from restkv_local.models.random_gguf import add_tokenizer

N_VOCAB, N_EMBD, N_FF, N_HEAD, N_HEAD_KV, HEAD = 320, 256, 256, 4, 2, 64


def write_lfm2(path: Path, seed: int = 0) -> Path:
    """Four layers: attention in the second and the last, short convolutions in the others."""
    writer = gguf.GGUFWriter(str(path), "lfm2")
    heads = [0, N_HEAD_KV, 0, N_HEAD_KV]
    _settings(writer, len(heads))
    writer.add_head_count_kv(heads)
    writer.add_shortconv_l_cache(3)
    tensors = _Tensors(writer, seed)
    tensors.ends("token_embd_norm")
    for il, n_head_kv in enumerate(heads):
        at = f"blk.{il}"
        if n_head_kv:
            tensors.attention(at)
        else:
            tensors.add(f"{at}.attn_norm.weight", N_EMBD)
            tensors.add(f"{at}.shortconv.conv.weight", N_EMBD, 3)
            tensors.add(f"{at}.shortconv.in_proj.weight", 3 * N_EMBD, N_EMBD)
            tensors.add(f"{at}.shortconv.out_proj.weight", N_EMBD, N_EMBD)
        tensors.feed_forward(at)
    return _write(writer, path)


def write_minimax_m3(path: Path, seed: int = 0) -> Path:
    """Two layers, both dense: the second cache is there and holds nothing."""
    writer = gguf.GGUFWriter(str(path), "minimax-m3")
    _settings(writer, 2)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_leading_dense_block_count(2)
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(N_FF)
    writer.add_expert_shared_count(1)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    indexer = {"head_count": 2, "key_length": HEAD, "top_k": 2, "block_size": 16, "local_blocks": 1}
    for name, value in indexer.items():
        writer.add_uint32(f"minimax-m3.attention.indexer.{name}", value)
    tensors = _Tensors(writer, seed)
    tensors.ends("output_norm")
    tensors.add("output.weight", N_VOCAB, N_EMBD)
    for il in range(2):
        tensors.attention(f"blk.{il}")
        tensors.feed_forward(f"blk.{il}")
    return _write(writer, path)


class _Tensors:
    def __init__(self, writer: gguf.GGUFWriter, seed: int) -> None:
        self._writer, self._rng = writer, np.random.default_rng(seed)

    def add(self, name: str, *shape: int) -> None:
        scale = 1.5 * shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        values = self._rng.normal(0.0, scale, shape).astype(np.float32)
        self._writer.add_tensor(name, values + (1.0 if len(shape) == 1 else 0.0))

    def ends(self, norm: str) -> None:
        self.add("token_embd.weight", N_VOCAB, N_EMBD)
        self.add(f"{norm}.weight", N_EMBD)

    def attention(self, at: str) -> None:
        self.add(f"{at}.attn_norm.weight", N_EMBD)
        self.add(f"{at}.attn_q.weight", N_HEAD * HEAD, N_EMBD)
        self.add(f"{at}.attn_k.weight", N_HEAD_KV * HEAD, N_EMBD)
        self.add(f"{at}.attn_v.weight", N_HEAD_KV * HEAD, N_EMBD)
        self.add(f"{at}.attn_q_norm.weight", HEAD)
        self.add(f"{at}.attn_k_norm.weight", HEAD)
        self.add(f"{at}.attn_output.weight", N_EMBD, N_HEAD * HEAD)

    def feed_forward(self, at: str) -> None:
        self.add(f"{at}.ffn_norm.weight", N_EMBD)
        self.add(f"{at}.ffn_gate.weight", N_FF, N_EMBD)
        self.add(f"{at}.ffn_up.weight", N_FF, N_EMBD)
        self.add(f"{at}.ffn_down.weight", N_EMBD, N_FF)


def _settings(writer: gguf.GGUFWriter, n_layer: int) -> None:
    writer.add_name("random weights")
    writer.add_context_length(4096)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(N_VOCAB)


def _write(writer: gguf.GGUFWriter, path: Path) -> Path:
    add_tokenizer(writer, N_VOCAB)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
