"""Engines that are stopped: cancel, callbacks that raise, calls of several threads."""

from __future__ import annotations

import threading
import time
from itertools import islice
from pathlib import Path

import pytest

from engines import answer
from restkv_local.config import EvictConfig
from restkv_local.errors import Cancelled, LibraryError, RestkvError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)


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
