"""The engine on a real model: evictions, settings, many turns and states."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import SMALL, TEXT, answer, logits
from restkv_local.config import EvictConfig
from restkv_local.errors import ConfigError, ContextOverflow, LibraryError, ModelError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)


# ---- what an eviction may not change -------------------------------------------------------------


@pytest.mark.parametrize("kv_type", ["f16", ("q8_0", "q4_0")])
def test_budget_above_the_prompt_is_bit_identical_to_the_full_cache(
    smollm2: Path, tokens: list[int], kv_type: Any
) -> None:
    rows, answers = [], []
    for evict in (EvictConfig(method="full"), EvictConfig(budget=512), EvictConfig(budget=512, prefill="guided")):
        made = Engine(smollm2, n_threads=1, n_ctx=4096, evict=evict, kv_type=kv_type)
        answers.append(answer(made, tokens[:300], 8))
        rows.append(logits(made))
        assert made.report().n_evictions == 0 and made.report().prefill_used == "none"
        made.close()
    for row, said in zip(rows[1:], answers[1:], strict=True):
        np.testing.assert_array_equal(row, rows[0])
        assert said == answers[0]


def test_cache_never_grows(small: Engine, tokens: list[int]) -> None:
    seen: list[int] = []
    before = small.report().n_evictions
    small.on_progress = lambda done, total: seen.append(small.cells)
    answer(small, tokens[:500], 100)
    report = small.report()
    assert report.capacity == 256
    assert max(seen) == report.capacity, "all cells are used before any is dropped"
    assert report.kv_bytes == report.capacity * small.plan.bytes_per_cell
    assert report.positions == 500 + 99 and report.cells <= report.capacity
    assert report.n_evictions - before == 1 + (599 - 256 - 1) // 160
    assert len(report.evictions) == report.n_evictions
    for eviction in report.evictions[before:]:
        assert (eviction.cells_before, eviction.cells_after, eviction.layers) == (256, 96, 30)
        assert eviction.bytes_moved > 0 and eviction.seconds > 0 and eviction.rows == 32
    assert report.backend == "cpu-fused" and report.prefill_used == "stream"
    assert report.ring_bytes == small.plan.ring_bytes and report.wo_bytes == small.plan.wo_bytes


def test_kept_positions(small: Engine, tokens: list[int]) -> None:
    small.eval(tokens[:416])  # evictions after 256 tokens, and none since
    sets = []
    for layer in (0, 7, 29):
        for head in range(3):
            kept = small.kept(layer, head)
            assert kept.dtype == np.int32 and len(kept) == small.cells == 256
            assert (np.diff(kept) > 0).all(), "ascending, nothing twice"
            np.testing.assert_array_equal(kept[-(160 + 32) :], np.arange(416 - 160 - 32, 416))
            sets.append(set(kept.tolist()))
    assert len({frozenset(s) for s in sets}) > 1, "every head chooses its own"
    for layer, head in ((30, 0), (0, 3), (-1, 0), (0, -1)):
        with pytest.raises(ConfigError):
            small.kept(layer, head)


def test_batches_do_not_change_an_exact_prefill(smollm2: Path, tokens: list[int]) -> None:
    kept = []
    for n_batch in (512, 97):
        made = Engine(smollm2, n_threads=1, n_ctx=1024, evict=SMALL.with_(prefill="exact"), n_batch=n_batch)
        made.eval(tokens[:600])
        report = made.report()
        assert (report.n_evictions, report.cells, report.capacity) == (1, 96, 1024)
        assert report.prefill_used == "exact" and report.evictions[0].cells_before == 600
        kept.append([made.kept(layer, head) for layer in range(30) for head in range(3)])
        made.close()
    same = [len(set(a) & set(b)) / len(a) for a, b in zip(*kept, strict=True)]
    assert np.mean(same) > 0.995, "sets agree up to the rounding of another batch"


def test_exact_evicts_while_answering(smollm2: Path, tokens: list[int]) -> None:
    made = Engine(smollm2, n_threads=1, n_ctx=1024, evict=EvictConfig(budget=96, reserve=40, prefill="exact"))
    answer(made, tokens[:300], 100)
    report = made.report()
    assert report.n_evictions == 1 + 99 // 40
    assert max(eviction.cells_before for eviction in report.evictions[1:]) == 136
    made.close()


def test_guide_is_dropped_again(smollm2: Path, tokens: list[int]) -> None:
    made = Engine(smollm2, n_threads=1, n_ctx=1024, evict=SMALL.with_(prefill="guided"))
    made.guide = "What does the keeper of the lighthouse write?"
    n_guide = len(made.tokenize(made.guide.encode(), add_bos=False))
    made.eval(tokens[:700])
    report = made.report()
    assert made.n_tokens == report.positions == 700
    assert report.prefill_used == "guided" and report.guide_seconds > 0
    for eviction in report.evictions:
        assert eviction.guide == n_guide and eviction.cells_before + n_guide == 256
    kept = made.kept(0, 0)
    assert kept.max() == 699 and len(kept) == made.cells
    # near the end of the context only a part of the guide has positions left
    made.eval(tokens[: 1024 - 700 - 1])
    assert made.n_tokens == 1023
    assert made.report().evictions[-1].guide <= n_guide
    made.close()


def test_guide_comes_from_the_chat(smollm2: Path) -> None:
    question = "Who writes the weather into a book?"
    made = Engine(smollm2, n_threads=1, n_ctx=2048, evict=EvictConfig(budget=96, reserve=232, prefill="guided"))
    made.create_chat_completion(
        [{"role": "system", "content": TEXT[:1500]}, {"role": "user", "content": question}], max_tokens=2
    )
    # the question and the format's start of an answer
    end = f"{question}<|im_end|>\n<|im_start|>assistant\n"
    n_guide = len(made.tokenize(end.encode(), add_bos=False, special=True))
    assert {eviction.guide for eviction in made.report().evictions} == {n_guide}
    made.create_completion(TEXT[300:2400], max_tokens=2)
    assert made.report().evictions[-1].guide == made.plan.window, "no question: the prompt's end"
    made.close()


def test_question_of_a_chat() -> None:
    from restkv_local.engine.options import last_question

    parts = [{"type": "text", "text": "One"}, {"type": "image_url", "image_url": "x"}, {"type": "text", "text": "two"}]
    chat: list[dict[str, Any]] = [{"role": "user", "content": "Zero"}, {"role": "user", "content": parts}]
    assert last_question([*chat, {"role": "assistant", "content": "no"}]) == "One\ntwo"
    assert last_question(chat[:1]) == "Zero"
    assert last_question([{"role": "user", "content": None}]) == ""
    assert last_question([{"role": "system", "content": "rules"}]) is None


# ---- limits and settings -------------------------------------------------------------------------


def test_context_is_a_limit_in_positions(small: Engine, tokens: list[int]) -> None:
    with pytest.raises(ContextOverflow, match=r"Requested tokens \(2100\) exceed context window of 2048"):
        small.eval((tokens * 4)[:2100])
    assert small.n_tokens == 0, "nothing was read"
    with pytest.raises(ContextOverflow, match=r"Requested tokens \(2048\) exceed context window of 2048"):
        small.create_completion((tokens * 4)[:2048])
    assert len(answer(small, tokens[:30], 3)) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_contx": 1}, "unknown setting 'n_contx'"),
        ({"logits_all": True}, "logits_all is not possible"),
        ({"embedding": True}, "embedding is not possible"),
        ({"draft_model": object()}, "draft_model is not possible"),
        ({"flash_attn": False}, "flash_attn=False"),
        ({"type_k": 8}, "kv_type"),
        ({"lora_path": "some.gguf"}, "use_wo=False"),
        ({"kv_type": "f32"}, "kv_type must be one of"),
        ({"evict": EvictConfig(budget="1kB")}, "smallest budget that works"),
        ({"n_ctx": 1 << 24, "evict": EvictConfig(method="full")}, "largest n_ctx that fits"),
        ({"n_batch": 0}, "n_batch"),
    ],
)
def test_impossible_settings_are_refused_before_loading(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    def load(*_args: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("restkv_local.engine.core.construct", load)
    with pytest.raises(ConfigError, match=message):
        Engine(smollm2, **settings)


def test_truncated_model(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    with smollm2.open("rb") as whole:
        path.write_bytes(whole.read(smollm2.stat().st_size // 2))
    with pytest.raises(ModelError, match="cut off or damaged"):
        Engine(path)


def test_positions_beyond_training_are_said_once(small: Engine, tokens: list[int]) -> None:
    notices: list[str] = []
    small.on_notice = notices.append
    plan = small.plan
    object.__setattr__(plan, "n_ctx_train", 100)
    try:
        small.eval(tokens[:200])
        answer(small, tokens[:300], 4)
    finally:
        object.__setattr__(plan, "n_ctx_train", 8192)
    assert len(notices) == 1 and "YaRN" in notices[0]
    assert small.report().notices[-1] == notices[0]


# ---- many turns ----------------------------------------------------------------------------------


def test_extension_reuses_the_cache(small: Engine, tokens: list[int]) -> None:
    said = answer(small, tokens[:500], 6)
    held = small.n_tokens
    done: list[tuple[int, int]] = []
    small.on_progress = lambda *figures: done.append(figures)
    answer(small, tokens[:500] + said + tokens[500:560], 2)
    report = small.report()
    assert report.reused_tokens == held == 505
    assert done[0] == (0, 61) and done[-1] == (61, 61), "only what is new was read"
    assert report.reevaluated is None and report.prompt_tokens == 566
    assert report.completion_tokens == 2 and report.decode_seconds > 0 and report.prefill_seconds > 0


def test_another_prefix_is_read_again_and_said(small: Engine, tokens: list[int]) -> None:
    fresh = answer(small, tokens[:300], 5)
    small.reset()
    notices: list[str] = []
    small.on_notice = notices.append
    answer(small, tokens[:480], 2)  # evicts at 256 and 416
    assert answer(small, tokens[:300], 5) == fresh
    report = small.report()
    assert report.reused_tokens == 0
    assert report.reevaluated is not None and "300 of 481 positions" in report.reevaluated
    assert notices == [report.reevaluated]


def test_cut_after_the_last_eviction_is_exact(small: Engine, tokens: list[int]) -> None:
    answer(small, tokens[:300], 4)
    small.n_tokens = 280  # an eviction happened at 256
    answer(small, tokens[:280] + tokens[10:30], 4)
    assert small.report().reused_tokens == 280 and small.report().reevaluated is None


def test_manual_cut_before_an_eviction_is_repaired(small: Engine, tokens: list[int]) -> None:
    small.eval(tokens[:220])
    expected = logits(small)
    small.reset()
    small.eval(tokens[:300])
    small.n_tokens = 100
    small.eval(tokens[100:220])
    assert small.n_tokens == small.cells == 220
    assert small.report().reevaluated is not None
    np.testing.assert_array_equal(logits(small), expected)


# ---- states --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefill", ["stream", "exact"])
def test_state_in_the_middle_gives_the_same_tokens(smollm2: Path, tokens: list[int], prefill: str) -> None:
    evict = SMALL.with_(prefill=prefill)
    first = Engine(smollm2, n_threads=1, n_ctx=2048, evict=evict)
    first.eval(tokens[:500])
    state = pickle.loads(pickle.dumps(first.save_state()))
    expected = answer(first, tokens[:500], 150)  # evicts again on the way
    second = Engine(smollm2, n_threads=1, n_ctx=2048, evict=evict)
    for made in (first, second):
        made.eval(tokens[:40])
        made.load_state(state)
        assert (made.n_tokens, made.cells) == (500, 256 - 160 + (500 - 256) % 160 if prefill == "stream" else 96)
        assert answer(made, tokens[:500], 150) == expected
        assert made.report().reused_tokens == 500 and made.report().reevaluated is None
    assert state.llama_state_size < 2 * first.plan.capacity * first.plan.bytes_per_cell + first.plan.ring_bytes
    first.close()
    second.close()


def test_state_of_another_cache_is_refused(small: Engine, smollm2: Path, tokens: list[int]) -> None:
    made = Engine(smollm2, n_threads=1, n_ctx=2048, evict=EvictConfig(budget=128, reserve=128))
    made.eval(tokens[:200])
    state = made.save_state()
    made.close()
    small.eval(tokens[:100])
    with pytest.raises(ConfigError, match="saved with budget 128 and this engine has 96"):
        small.load_state(state)
    assert small.n_tokens == small.cells == 0, "empty"
    own = small.save_state
    small.eval(tokens[:100])
    damaged = own()
    damaged.llama_state = bytes(damaged.llama_state[: len(damaged.llama_state) // 2])
    with pytest.raises(ConfigError, match="damaged"):
        small.load_state(damaged)
    assert small.n_tokens == small.cells == 0
    with pytest.raises(ConfigError, match="not saved by an Engine"):
        small.load_state(object())
    assert answer(small, tokens[:30], 2), "usable"


def test_pickled_engine_has_the_same_plan(small: Engine, tokens: list[int]) -> None:
    copy = pickle.loads(pickle.dumps(small))
    assert copy.plan == small.plan and copy.evict == small.evict
    assert answer(copy, tokens[:300], 5) == answer(small, tokens[:300], 5)
    copy.close()
