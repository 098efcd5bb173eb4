"""The engine on a real model: memory, reuse, stopping, states, and what it must not do to its host."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restkv_local.config import EvictConfig
from restkv_local.engine import prefill
from restkv_local.errors import (
    Cancelled,
    ConfigError,
    ContextOverflow,
    LibraryError,
    ModelError,
    RestkvError,
)

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

# Engines here run on one thread: two would wait for each other at every operation when the machine is busy.
SMALL = EvictConfig(budget=96, reserve=160)
TEXT = (
    "The harbour of Lindau lies on the southern shore. Ships bring salt, wool and timber from the mountains. "
    "The keeper of the lighthouse writes the weather into a blue book every evening. "
    "In spring the market opens at six, and the baker sells bread with seeds. "
) * 16


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[Engine]:
    """One small engine for many tests; each begins with an empty cache."""
    made = Engine(smollm2, n_threads=1, n_ctx=2048, evict=SMALL)
    yield made
    made.close()


@pytest.fixture
def small(engine: Engine) -> Iterator[Engine]:
    engine.reset()
    yield engine
    engine.on_progress = engine.on_notice = engine.on_evict = None
    engine.guide = None


@pytest.fixture(scope="module")
def tokens(engine: Engine) -> list[int]:
    made: list[int] = engine.tokenize(TEXT.encode())
    assert len(made) > 700
    return made


def answer(engine: Engine, prompt: list[int], n: int) -> list[int]:
    return list(islice(engine.generate(prompt, temp=0.0), n))


def logits(engine: Engine) -> np.ndarray:
    return np.asarray(engine.scores[-1, :])


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


# ---- stopping ------------------------------------------------------------------------------------


def test_cancel_in_a_prefill_then_continue(small: Engine, tokens: list[int]) -> None:
    expected = answer(small, tokens[:450], 6)
    small.reset()
    done: list[tuple[int, int]] = []

    def stop(n: int, total: int) -> None:
        done.append((n, total))
        if n >= 256:
            small.cancel()

    small.on_progress = stop
    with pytest.raises(Cancelled):
        answer(small, tokens[:450], 1)
    small.on_progress = None
    held = small.n_tokens
    assert 256 <= held == done[-1][0] < 450
    assert small.report().positions == held
    assert answer(small, tokens[:450], 6) == expected, "chunks end at the same positions"
    assert small.report().reused_tokens == held


def test_cancel_from_another_thread_stops_within_a_ubatch(smollm2: Path, tokens: list[int]) -> None:
    made = Engine(smollm2, n_threads=1, n_ctx=4096, evict=EvictConfig(budget=1024), n_batch=512)
    started = threading.Event()
    made.on_progress = lambda done, total: started.set()
    stopped = []

    def cancel() -> None:
        started.wait(20)
        time.sleep(0.05)  # inside the first llama_decode, which takes a second or more
        stopped.append(time.perf_counter())
        made.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        made.eval((tokens * 3)[:2000])
    assert time.perf_counter() - stopped[0] < 0.5
    thread.join()
    assert made.n_tokens == made.cells == 0, "no cell of the stopped ubatch stays"
    made.eval(tokens[:50])
    assert made.n_tokens == made.cells == 50
    made.close()


def test_cancel_in_an_answer_then_continue(small: Engine, tokens: list[int]) -> None:
    expected = answer(small, tokens[:300], 12)
    small.reset()
    said = []
    with pytest.raises(Cancelled):
        for token in small.generate(tokens[:300], temp=0.0):
            said.append(token)
            if len(said) == 5:
                small.cancel()
    assert said == expected[:5]
    assert answer(small, tokens[:300] + said, 7) == expected[5:]
    assert small.report().reused_tokens == 304


def test_cancel_when_idle_does_nothing(small: Engine, tokens: list[int]) -> None:
    small.cancel()
    assert len(answer(small, tokens[:20], 3)) == 3


def test_a_callback_that_raises_leaves_a_consistent_cache(small: Engine, tokens: list[int]) -> None:
    def fail(done: int, total: int) -> None:
        if done:
            raise KeyError("from the host")

    small.on_progress = fail
    with pytest.raises(KeyError):
        small.eval(tokens[:400])
    assert small.n_tokens == small.report().positions > 0
    small.on_progress = None
    assert answer(small, tokens[:400], 2)


def test_calls_of_two_threads_queue(small: Engine, tokens: list[int]) -> None:
    alone = [answer(small, tokens[:80], 20), answer(small, tokens[40:90], 20)]
    stream = small.generate(tokens[:80], temp=0.0)
    first = [next(stream) for _ in range(5)]
    other: list[list[int]] = []
    thread = threading.Thread(target=lambda: other.append(answer(small, tokens[40:90], 20)))
    thread.start()
    first += islice(stream, 15)
    assert not other, "it waits for the stream"
    stream.close()
    thread.join(60)
    assert [first, *other] == alone


def test_own_unfinished_stream_is_an_error_not_a_deadlock(
    small: Engine, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("restkv_local.engine.queueing.OWN_STREAM_WAIT", 0.05)
    stream = small.generate(tokens[:20], temp=0.0)
    next(stream)
    with pytest.raises(RestkvError, match="still being streamed"):
        small.eval(tokens[:20])
    stream.close()
    small.eval(tokens[:20])


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


# ---- what is built on Llama ----------------------------------------------------------------------


def test_chat_streaming_gives_the_same_text(small: Engine) -> None:
    messages = [{"role": "user", "content": "Say hello to the harbour."}]
    settings: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
    whole = small.create_chat_completion(messages, **settings)["choices"][0]["message"]["content"]
    chunks = small.create_chat_completion(messages, stream=True, **settings)
    parts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(parts) == whole != ""


def test_grammar_and_tools(small: Engine) -> None:
    from llama_cpp import LlamaGrammar

    grammar = LlamaGrammar.from_string('root ::= "yes" | "no"')
    said = small.create_completion("Is water wet? Answer:", grammar=grammar, max_tokens=8)["choices"][0]["text"]
    assert said in ("yes", "no")
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Lindau"]}}, "required": ["city"]},
        },
    }
    choice = {"type": "function", "function": {"name": "weather"}}
    message = small.create_chat_completion(
        [{"role": "user", "content": "Weather in Lindau?"}], tools=[tool], tool_choice=choice, max_tokens=64
    )["choices"][0]["message"]
    call = message["tool_calls"][0]["function"]
    assert call["name"] == "weather" and json.loads(call["arguments"]) == {"city": "Lindau"}


def test_logprobs_of_an_answer(small: Engine, tokens: list[int]) -> None:
    prompt = tokens[:300]
    result = small.create_completion(prompt, max_tokens=4, logprobs=3, temperature=0.0, seed=1)
    logprobs = result["choices"][0]["logprobs"]
    assert len(logprobs["token_logprobs"]) == 4
    small.reset()
    said: list[int] = []
    for token in small.generate(prompt, temp=0.0):
        row = logits(small).astype(np.float64)
        expected = row[token] - row.max() - np.log(np.exp(row - row.max()).sum())
        np.testing.assert_allclose(logprobs["token_logprobs"][len(said)], expected, atol=1e-4)
        assert max(logprobs["top_logprobs"][len(said)].values()) == logprobs["token_logprobs"][len(said)]
        said.append(token)
        if len(said) == 4:
            break
    with pytest.raises(ConfigError, match="echo"):
        small.create_completion("a", echo=True, logprobs=1)


def test_stopping_criteria_see_the_last_logits(small: Engine, tokens: list[int]) -> None:
    seen: list[int] = []

    def criterion(ids: Any, scores: Any) -> bool:
        seen.append(int(np.argmax(scores)))
        return len(seen) == 4

    from llama_cpp import StoppingCriteriaList

    said = list(small.generate(tokens[:50], temp=0.0, stopping_criteria=StoppingCriteriaList([criterion])))
    assert len(seen) == 4 and said == seen[:3]


# ---- the host program ----------------------------------------------------------------------------


def test_loading_and_answering_print_nothing(smollm2: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = Engine(smollm2, n_threads=1, n_ctx=512, evict=EvictConfig(budget=64, reserve=64))
    made.create_completion(TEXT[:1200], max_tokens=2)
    with pytest.raises(ContextOverflow):
        made.create_completion(TEXT)
    made.close()
    made.close()
    assert capfd.readouterr() == ("", "")


def test_file_descriptors_stay_where_they_are(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread prints while a model loads: nothing may be lost, so nothing may be redirected."""

    def redirect(*_args: Any) -> None:
        raise AssertionError("a file descriptor was redirected")

    with monkeypatch.context() as patch:  # the test runner itself redirects between tests
        patch.setattr(os, "dup2", redirect)
        Engine(smollm2, n_threads=1, n_ctx=512, evict=EvictConfig(method="full")).close()


def test_no_large_batch_and_no_score_array(small: Engine) -> None:
    assert small._batch.n_seq_max == 1
    assert small.scores.nbytes == small.n_vocab() * 4
    assert "scores" not in vars(small)


def test_stock_llama_is_untouched(small: Engine, smollm2: Path) -> None:
    import llama_cpp
    from llama_cpp import _internals, llama

    assert llama.internals is _internals and llama.suppress_stdout_stderr.__name__ == "suppress_stdout_stderr"
    stock = llama_cpp.Llama(str(smollm2), n_ctx=256, verbose=False)
    assert stock._batch.n_seq_max == 256
    stock.close()


def test_two_engines_do_not_meet(small: Engine, smollm2: Path, tokens: list[int]) -> None:
    expected = answer(small, tokens[:300], 6)
    small.reset()
    other = Engine(smollm2, n_threads=1, n_ctx=1024, evict=EvictConfig(budget=64, reserve=96, method="snapkv"))
    said: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: answer(other, tokens[:200], 6)),
        threading.Thread(target=lambda: said.append(answer(small, tokens[:300], 6))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [expected]
    assert (small.cells <= 256, other.cells <= 160) == (True, True)
    other.close()


def test_closed_engine_says_so(smollm2: Path, tokens: list[int]) -> None:
    made = Engine(smollm2, n_threads=1, n_ctx=512, evict=EvictConfig(budget=64, reserve=64))
    stream = made.generate(tokens[:20], temp=0.0)
    next(stream)
    made.close()
    for call in (made.report, made.save_state, lambda: made.eval([1]), lambda: next(stream), lambda: made.kept(0, 0)):
        with pytest.raises(RestkvError, match="closed"):
            call()


def test_a_long_prompt_is_held_once(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list that is read is the caller's own, and equal ids are one object: what grows with a text stays small."""
    engine = Engine(str(smollm2), n_ctx=512, n_threads=1)
    tokens = engine.tokenize((TEXT * 3).encode())
    assert len({id(token) for token in tokens}) == len(set(tokens)) < len(tokens)
    seen: list[object] = []
    read = prefill.read

    def watched(engine: Any, tokens: Any, guide: Any) -> None:
        seen.append(tokens)
        read(engine, tokens, guide)

    monkeypatch.setattr(prefill, "read", watched)
    prompt = tokens[:200]
    engine.eval(prompt)
    engine.close()
    assert len(seen) == 1 and seen[0] is prompt


def test_peak_memory_does_not_know_the_context(smollm2: Path) -> None:
    """Twice the text and 16 times the context: the same memory."""
    code = (
        "import sys\n"
        "sys.path[:] = filter(None, sys.path)\n"  # not the checkout, which has no library
        "from restkv_local import Engine, EvictConfig\n"
        "from restkv_local.bench.process import peak_rss_bytes\n"
        "e = Engine(sys.argv[1], n_ctx=int(sys.argv[2]), evict=EvictConfig(budget=96, reserve=160), n_threads=1)\n"
        "t = e.tokenize(sys.argv[3].encode())\n"
        "e.eval((t * 4)[: int(sys.argv[4])])\n"
        "print(peak_rss_bytes(), e.cells)\n"
    )
    peaks = []
    for n_ctx, n in ((2048, 500), (32768, 1000)):
        command = [sys.executable, "-c", code, str(smollm2), str(n_ctx), TEXT, str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        peaks.append(int(done.stdout.split()[0]))
    assert peaks[1] < peaks[0] * 1.02
