"""The evicting library against the reference engine in torch: same kept sets, same logits, same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import models
from evicting import Evicting
from restkv_local.config import EvictConfig
from restkv_local.reference.model import ReferenceEngine
from stock import Stock

pytestmark = pytest.mark.usefixtures("library")

BUDGET, CAPACITY, CHUNK = 160, 384, 96
N_PROMPT, N_ANSWER = 700, 24

# Cells whose scores differ by less than the rounding of an F16 cache may fall either side of the cut.
HEAD_OVERLAP, MEAN_OVERLAP = 0.95, 0.99
# Typical difference of a logit when the sets are the same, and when a near tie went the other way. The logits of these
# models have a standard deviation of 2 to 3.
SAME, NEAR = 0.03, 0.3


def prompt(n_vocab: int, n: int = N_PROMPT, seed: int = 0) -> list[int]:
    """Random tokens with repeats, so that attention has something to look back at."""
    rng = np.random.default_rng(seed)
    words = rng.integers(10, n_vocab, 60)
    return [int(x) for x in rng.choice(words, n)]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return len(np.intersect1d(a, b)) / max(len(a), len(b))


def check_same(native: Evicting, reference: ReferenceEngine) -> float:
    """Both hold as many cells; their sets agree up to near ties. Returns the tolerance that follows for the logits."""
    spec = reference.model.spec
    assert native.stats.n_cells == reference.cells
    overlaps = []
    for layer in range(spec.n_layer):
        if spec.swa[layer]:
            continue
        for head in range(spec.n_head_kv[layer]):
            ours, theirs = native.kept(layer, head), reference.kept(layer, head)
            assert np.all(np.diff(ours) > 0)
            overlaps.append(overlap(ours, theirs))
    assert min(overlaps) >= HEAD_OVERLAP and np.mean(overlaps) >= MEAN_OVERLAP, overlaps
    return SAME if min(overlaps) == 1.0 else NEAR


def check_logits(a: np.ndarray, b: np.ndarray, tolerance: float) -> None:
    """Median over rows: a router of experts that flips on a near tie changes single tokens."""
    per_row = np.sqrt(np.mean((a - b) ** 2, axis=1))
    assert np.median(per_row) < tolerance, per_row
    # each greedy choice is one that the reference could have made
    chosen = np.take_along_axis(b, a.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert np.mean(b.max(axis=1) - chosen < 10 * tolerance) >= 0.95


def run_both(path: Path, config: EvictConfig, tokens: Sequence[int], *, guide: Sequence[int] = (),
             kv: str = "f16") -> None:  # fmt: skip
    reference = ReferenceEngine(path, BUDGET, CAPACITY, config, type_k=kv, type_v=kv)
    with Evicting(path, BUDGET, CAPACITY, config, type_k=kv, type_v=kv) as native:
        for i in range(0, len(tokens), CHUNK):
            chunk = tokens[i : i + CHUNK]
            if guide and native.stats.n_cells + len(chunk) + len(guide) > CAPACITY:
                native.decode(guide)
                reference.decode(guide)
                assert native.evict(len(guide)) == reference.evict(len(guide)) is True
                check_same(native, reference)
            ours, theirs = native.decode(chunk), reference.decode(chunk)
            check_logits(ours, theirs, check_same(native, reference))
        assert reference.n_evictions >= 2 and native.stats.n_evictions == reference.n_evictions

        token = int(ours[-1].argmax())
        answers = []
        for _ in range(N_ANSWER):
            answers.append((native.decode([token])[0], reference.decode([token])[0]))
            token = int(answers[-1][0].argmax())
        tolerance = check_same(native, reference)
        check_logits(np.array([a for a, _ in answers]), np.array([b for _, b in answers]), tolerance)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_every_family(family: str, folder: Path) -> None:
    path = models.write_random(folder / f"{family}.gguf", family, seed=3)
    run_both(path, EvictConfig(), prompt(320))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_with_a_guide(family: str, folder: Path) -> None:
    path = models.write_random(folder / f"guide-{family}.gguf", family, seed=4)
    run_both(path, EvictConfig(), prompt(320), guide=prompt(320, 20, seed=9))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "snapkv"},
        {"method": "tova"},
        {"method": "h2o"},
        {"method": "lacache"},
        {"method": "fifo"},
        {"method": "knorm"},
        {"method": "keydiff"},
        {"indicator": "attention", "rows": "last"},
        {"indicator": "attention-value-norm", "rows": "inverted-ema"},
        {"indicator": "attention-value-norm", "rows": "max", "reduce": "max"},
        {"method": "streamingllm"},
        {"method": "random", "seed": 5},
        {"scale": 50},
        {"metric_mode": "before", "use_norm": True},
        {"use_wo": False, "pooling": "maxpool", "kernel": 7},
        {"use_ema": False, "pooling": "none", "reduce": "max"},
        {"tau": 0.5, "alpha": None, "window": 16},
    ],
    ids=str,
)
def test_methods_and_options(changes: dict[str, object], folder: Path) -> None:
    path = models.write_random(folder / "options.gguf", "llama", seed=5, n_head=6, n_head_kv=3)
    run_both(path, EvictConfig().with_(**changes), prompt(320))


@pytest.mark.parametrize("method", ["tova", "h2o", "lacache"])
@pytest.mark.parametrize("guide", [0, 20])
def test_methods_with_a_state_or_a_shared_set(method: str, guide: int, folder: Path) -> None:
    # attention sinks, sliding windows beside full attention, a rotated cache
    path = models.write_random(folder / "gpt-oss-4.gguf", "gpt-oss", seed=5, n_layer=4)
    run_both(path, EvictConfig().with_(method=method), prompt(320), guide=prompt(320, guide, seed=9), kv="q8_0")


def test_tova_evicts_one_cell_per_token(folder: Path) -> None:
    path = models.write_random(folder / "tova.gguf", "llama", seed=11, n_head=6, n_head_kv=3)
    budget, tokens = 60, prompt(320, 160)
    config = EvictConfig(method="tova")
    reference = ReferenceEngine(path, budget, budget + 1, config)
    with Evicting(path, budget, budget + 1, config) as native:
        same = 0
        for n, token in enumerate(tokens):
            native.decode([token])
            reference.decode([token])
            assert native.stats.n_evictions == reference.n_evictions == max(0, n - budget)
            kept = [native.kept(1, head) for head in range(3)]
            assert all(np.array_equal(kept[0], other) for other in kept)
            assert kept[0][-1] == n and len(kept[0]) == min(n + 1, budget + 1)
            same += np.array_equal(kept[0], reference.kept(1, 0))
        assert same >= 0.9 * len(tokens), "near ties aside"


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 64), (4, 1, 128), (2, 1, 256), (6, 2, 96)])
def test_head_shapes(heads: int, kv_heads: int, size: int, folder: Path) -> None:
    path = models.write_random(
        folder / f"{heads}-{kv_heads}-{size}.gguf", "qwen3", n_head=heads, n_head_kv=kv_heads, head_dim=size, seed=6
    )
    run_both(path, EvictConfig(), prompt(320))


@pytest.mark.parametrize("kv", ["bf16", "q8_0", "q4_0"])
def test_cache_types(kv: str, folder: Path) -> None:
    path = models.write_random(folder / f"kv-{kv}.gguf", "llama", seed=7, n_layer=1)
    run_both(path, EvictConfig(), prompt(320), kv=kv)


@pytest.mark.parametrize("weights", ["Q8_0", "Q4_0", "F16"])
def test_quantized_output_projection(weights: str, folder: Path) -> None:
    path = models.write_random(folder / f"wo-{weights}.gguf", "llama", seed=8, types={"attn_output": weights})
    tokens = prompt(320)
    reference = ReferenceEngine(path, BUDGET, CAPACITY)
    with Evicting(path, BUDGET, CAPACITY, EvictConfig()) as native:
        for i in range(0, N_PROMPT, CHUNK):
            native.decode(tokens[i : i + CHUNK])
            reference.decode(tokens[i : i + CHUNK])
        check_same(native, reference)


def test_embedded_model(folder: Path) -> None:
    source = models.smollm2()
    if source is None:
        pytest.skip("the embedded model is not installed")
    path = models.write_float_copy(folder / "smollm2.gguf", source, n_layer=6)
    rng = np.random.default_rng(1)
    run_both(path, EvictConfig(), [int(x) for x in rng.integers(1000, 9000, N_PROMPT)])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_within_the_budget_nothing_changes(family: str, folder: Path) -> None:
    path = models.write_random(folder / f"same-{family}.gguf", family, seed=2)
    tokens = prompt(320, 300)
    with Stock(path, n_ctx=512) as stock, Evicting(path, 400, 512, EvictConfig(), n_ctx=512) as native:
        for i in range(0, 300, 60):
            np.testing.assert_array_equal(native.decode(tokens[i : i + 60]), stock.decode(tokens[i : i + 60]))
        for token in tokens[:8]:
            np.testing.assert_array_equal(native.decode([token]), stock.decode([token]))
        assert native.stats.n_evictions == 0
