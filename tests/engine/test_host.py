"""What an engine must not do to its host: its output, its memory, other engines, stock llama_cpp."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from engines import TEXT, answer
from restkv_local.config import EvictConfig
from restkv_local.engine import prefill
from restkv_local.errors import ContextOverflow, LibraryError, RestkvError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)


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


@pytest.mark.parametrize("archive", ["none", "file"])
def test_peak_memory_does_not_know_the_context(smollm2: Path, archive: str) -> None:
    """Twice the text and 16 times the context: the same memory, also where evicted rows go to a file."""
    code = (
        "import sys\n"
        "sys.path[:] = filter(None, sys.path)\n"  # not the checkout, which has no library
        "from restkv_local import Engine, EvictConfig\n"
        "from restkv_local.bench.process import peak_rss_bytes\n"
        "c = EvictConfig(budget=96, reserve=160, archive=sys.argv[5])\n"
        "e = Engine(sys.argv[1], n_ctx=int(sys.argv[2]), evict=c, n_threads=1)\n"
        "t = e.tokenize(sys.argv[3].encode())\n"
        "e.eval((t * 4)[: int(sys.argv[4])])\n"
        "print(peak_rss_bytes(), e.cells)\n"
    )
    peaks = []
    for n_ctx, n in ((2048, 500), (32768, 1000)):
        command = [sys.executable, "-c", code, str(smollm2), str(n_ctx), TEXT, str(n), archive]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        peaks.append(int(done.stdout.split()[0]))
    assert peaks[1] < peaks[0] * 1.02


EXIT = """
import sys, threading, time
from restkv_local import Cancelled, Engine, EvictConfig

engine = Engine(sys.argv[1], n_threads=2, n_ctx=8192, evict=EvictConfig(budget=512, reserve=512))
begun = threading.Event()

def work():
    engine.on_progress = lambda done, total: begun.set()
    try:
        engine.eval(list(range(5, 250)) * 24)
    except Cancelled:
        pass

threading.Thread(target=work, daemon=True).start()
begun.wait()
time.sleep(float(sys.argv[2]))
print("bye")
"""


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
def test_python_ends_while_a_daemon_thread_works(smollm2: Path, seconds: float) -> None:
    """Before, about every third time ended in a segmentation fault."""
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(smollm2), str(seconds)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")
