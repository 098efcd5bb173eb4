"""The command lines on the embedded model."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from test_cli import BENCH_FIGURES, JSON_KEYS

from cli_terminal import run_in_terminal
from restkv_local.bench.process import python_program
from restkv_local.bench.prose import prose, prose_tokens
from restkv_local.sampling import CHAT_SAMPLING


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 700 tokens, longer than the cache of these tests."""
    path = tmp_path_factory.mktemp("documents") / "long.txt"
    path.write_text(prose(600))
    return path


def _program(module: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*python_program(module), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
    )


SMALL = ("--context", "4096", "--budget", "256", "--reserve", "256", "--temp", "0", "--seed", "1", "--max-tokens", "8")


@pytest.mark.usefixtures("native")
def test_real_document_is_read_and_memory_is_reported(long_text: Path) -> None:
    done = _program("restkv_local.cli.chat.main", *SMALL, "--file", str(long_text), "--ask", "Who came?", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == JSON_KEYS
    assert found["prompt_tokens"] > 512 and found["evictions"] > 0
    assert (found["capacity"], found["budget"], found["reserve"], found["context"]) == (512, 256, 256, 4096)
    assert found["kv_bytes"] % 512 == 0 and (found["prefill_mode"], found["archive"]) == ("recall", "file")
    assert 0 < found["recall_seconds"] < found["prefill_seconds"] and found["copied_cells"] > 0
    assert "embedded model" in done.stderr and "positions" in done.stderr


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("seed", ["0", "2"])
def test_real_first_question(seed: str) -> None:
    """As anybody asks it first, with nothing set: the answer is right, ends by itself, and is in English."""
    done = _program("restkv_local.cli.chat.main", "--ask", "What is the capital of France?", "--seed", seed, "--json")
    found = json.loads(done.stdout)
    assert found["answer"] == "The capital of France is Paris." and found["finish_reason"] == "stop", done.stderr


@pytest.mark.usefixtures("native")
def test_real_gpu_options_without_a_gpu() -> None:
    from restkv_local.check.devices import devices

    if any(device.kind in ("gpu", "igpu") for device in devices()):
        pytest.skip("there is a GPU")
    done = _program("restkv_local.cli.chat.main", "--ask", "hi", "--gpu-layers", "5")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: there is no GPU here") and "leave --gpu-layers" in done.stderr


@pytest.mark.usefixtures("native")
def test_defaults_of_a_chat_are_those_of_the_bindings() -> None:
    import inspect

    from llama_cpp import Llama

    parameters = inspect.signature(Llama.create_chat_completion).parameters
    assert {name: parameters[name].default for name in CHAT_SAMPLING} == CHAT_SAMPLING


@pytest.mark.usefixtures("native")
def test_real_document_is_read_with_an_archive(long_text: Path) -> None:
    arguments = (*SMALL, "--file", str(long_text), "--ask", "Who came?", "--archive", "file")
    done = _program("restkv_local.cli.chat.main", *arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^recalled [\d,]+ cells in \d+\.\d s$", done.stderr, re.MULTILINE), done.stderr


@pytest.mark.usefixtures("native")
def test_real_document_on_stdin_and_repeatable_answer(long_text: Path) -> None:
    arguments = (*SMALL, "--file", "-", "--ask", "Who came?")
    first, second = (_program("restkv_local.cli.chat.main", *arguments, stdin=long_text.read_text()) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() and first.stdout == second.stdout


@pytest.mark.usefixtures("native")
def test_real_full_cache_that_does_not_fit_is_refused() -> None:
    done = _program("restkv_local.cli.chat.main", "--method", "full", "--context", "16777216", "--ask", "hi")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "the largest --context that fits" in done.stderr


@pytest.mark.usefixtures("native")
def test_real_terminal_stops_while_reading_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(prose(20000))
    program = python_program("restkv_local.cli.chat.main")[1:]
    command = (*program, "--context", "65536", "--budget", "256", "--max-tokens", "4")
    with run_in_terminal(tmp_path, *command, "--file", f"{tmp_path}/long.txt") as running:
        running.type("What is this?\r")
        running.sees("reading.*%.*tok/s", timeout=60)
        running.press("\x03")
        running.sees("stopped while reading", timeout=60)
        running.type("/clear\r")
        running.type("Hello\r")
        running.sees("answered .* positions", timeout=60)
        running.type("\x04")
        assert running.leaves() == 0


@pytest.mark.usefixtures("native")
def test_real_speed_rows(tmp_path: Path) -> None:
    arguments = "speed --contexts 768 --budget 128 --reserve 128 --decode-tokens 4 --pairs 2 --stock-prefill sampled"
    done = _program("restkv_local.cli.bench.main", *arguments.split(), "--json", str(tmp_path / "speed.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "speed.json").read_text())
    assert set(result) == {"rows", "device", "versions", "settings", "date"}
    (row,) = result["rows"]
    for name in BENCH_FIGURES:
        assert row[f"{name}_min"] <= row[name] <= row[f"{name}_max"], name
    assert (row["context"], row["budget"]) == (768, 128)
    assert (row["stock_fill"], row["stock_prefill"]) == ("synthetic", "sampled")
    assert row["evictions"] > 0 and 0 < row["evict_share"] < 1
    assert row["peak_rss_bytes"] > 50e6
    assert any("depths" in note for note in row["notes"])


@pytest.mark.usefixtures("native")
def test_real_memory_rows(tmp_path: Path) -> None:
    """The whole of restkv-chat in a process of its own; the text fills the context, and the cache stays."""
    arguments = ["memory", "--contexts", "512,1024", "--budget", "128", "--reserve", "128", "--json"]
    done = _program("restkv_local.cli.bench.main", *arguments, str(tmp_path / "memory.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "memory.json").read_text())
    short, long = result["rows"]
    for row, context in ((short, 512), (long, 1024)):
        assert row["context"] == context and context - 128 < row["prompt_tokens"] < context
        assert row["prefill_mode"] == "guided" and row["completion_tokens"] > 0
    assert short["kv_bytes"] == long["kv_bytes"] and 0 < short["evictions"] < long["evictions"]


@pytest.mark.usefixtures("native")
def test_synthetic_fill_continues_like_a_real_text() -> None:
    """Positions go on over the copies, and tokens can be read behind them."""
    import llama_cpp

    from restkv_local import Engine
    from restkv_local.bench.stock import FILL_BLOCK, StockCache

    engine = Engine(n_ctx=512)
    tokens = prose_tokens(FILL_BLOCK + 8, engine.tokenize)
    stock = StockCache(
        engine.model, 1536, n_batch=256, n_threads=2, n_threads_batch=2,
        type_k=llama_cpp.GGML_TYPE_F16, type_v=llama_cpp.GGML_TYPE_Q8_0,
    )  # fmt: skip
    try:
        for length in (100, 700, 1300):
            stock.fill(length, tokens)
            assert stock.n_tokens == length
        assert stock.read(tokens[:8]) > 0
        assert stock.n_tokens == 1308
        stock.clear()
        assert stock.read(tokens[:8]) > 0
    finally:
        stock.close()
        engine.close()
