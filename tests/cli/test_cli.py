"""The command lines: options, documents, streams, JSON, and the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli_fake import FakeEngine
from restkv_local.bench import speed
from restkv_local.bench.process import peak_rss_bytes
from restkv_local.bench.prose import prose, prose_tokens
from restkv_local.bench.stock import StockError, position_offsets
from restkv_local.cli.bench import main as bench
from restkv_local.cli.chat import main as chat
from restkv_local.cli.chat.prompt import is_open, joined
from restkv_local.config import DEFAULT_BUDGET, DEFAULT_CONTEXT, EvictConfig
from restkv_local.engine.documents import Document, DocumentError, read_document, user_message
from restkv_local.engine.settings import EngineSettings
from restkv_local.sampling import CHAT_ANSWER, CHAT_SAMPLING

# Children test the package that this process tests, installed or not.
ROOT = Path(chat.__file__).resolve().parents[3]
JSON_KEYS = (
    "answer prompt_tokens completion_tokens context budget reserve capacity kv_bytes evictions prefill_mode method "
    "backend prefill_seconds evict_seconds decode_seconds peak_rss_bytes model "
    "allocation budget_total archive archive_bytes recalled_cells copied_cells recall_seconds "
    "finish_reason stopped reused recalled notices"
).split()
BENCH_FIGURES = (
    "decode_ms stock_decode_ms decode_ratio prefill_tokens_per_s stock_prefill_tokens_per_s prefill_ratio evict_share "
    "peak_rss_bytes"
).split()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """User files of a test stay in its folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("RESTKV_RAISE", raising=False)
    FakeEngine.instances.clear()


def _chat(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(chat.main, list(arguments), input=stdin, obj={"engine": FakeEngine})


# ---- one question ----


def test_answer_on_stdout_and_the_rest_on_stderr() -> None:
    result = _chat("--ask", "where?", "--model", "m.gguf")
    assert result.exit_code == 0, result.output
    assert result.stdout == "I heard: where?\n"
    assert "positions" in result.stderr and "a notice of the engine" in result.stderr
    engine = FakeEngine.instances[0]
    assert engine.closed
    assert engine.requests[0]["messages"] == [{"role": "user", "content": "where?"}]


def test_json_has_the_promised_keys_and_nothing_else_on_stdout() -> None:
    result = _chat("--ask", "where?", "--json", "--model", "m.gguf")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found) == JSON_KEYS
    assert found["answer"] == "I heard: where?"
    assert (found["context"], found["method"], found["model"]) == (DEFAULT_CONTEXT, "restkv", "m.gguf")
    assert found["peak_rss_bytes"] > 1 << 20


def test_question_from_a_pipe() -> None:
    assert _chat(stdin=b"from a pipe\n").stdout == "I heard: from a pipe\n"


def test_embedded_model_is_announced() -> None:
    assert "embedded" in _chat("--ask", "hi").stderr
    assert "embedded" not in _chat("--ask", "hi", "--model", "m.gguf").stderr


def test_options_reach_the_engine() -> None:
    arguments = (
        "--model m.gguf --context 4096 --budget 256MB --reserve 700 --method snapkv --prefill exact --kv-type q8_0,q4_0"
        " --threads 3 --gpu-layers -1 --seed 7 --temp 0.5 --system S --max-tokens 9 --unverified --archive-type q8_0"
        " --ask hi"
    ).split()
    assert _chat(*arguments).exit_code == 0
    engine = FakeEngine.instances[0]
    assert engine.evict == EvictConfig(
        budget="256MB", reserve=700, method="snapkv", prefill="exact", seed=7, unverified=True, archive_type="q8_0"
    )
    assert engine.n_ctx == 4096
    assert engine.options == {"kv_type": ("q8_0", "q4_0"), "n_threads": 3, "n_gpu_layers": -1, "seed": 7}
    request = engine.requests[0]
    assert (request["temperature"], request["seed"], request["max_tokens"]) == (0.5, 7, 9)
    assert request["messages"][0] == {"role": "system", "content": "S"}


def test_how_answers_recall_reaches_the_engine() -> None:
    recalling = "--recall-every 4 --recall-below 0.8".split()
    assert _chat("--ask", "hi", "--archive", "ram", *recalling).exit_code == 0
    assert FakeEngine.instances[0].evict == EvictConfig(archive="ram", recall_every=4, recall_below=0.8)
    refused = _chat("--ask", "hi", *recalling)
    assert refused.exit_code == 1 and "recall_every recalls from an archive" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--main-gpu 1", {"split_mode": 0, "main_gpu": 1}),
        ("--tensor-split 3,1", {"tensor_split": [3.0, 1.0]}),
        ("", {}),
    ],
)
def test_gpus_reach_the_engine(arguments: str, expected: dict[str, object]) -> None:
    assert _chat("--ask", "hi", "--gpu-layers", "9", *arguments.split()).exit_code == 0
    options = FakeEngine.instances[0].options
    assert options == {"kv_type": "f16", "n_threads": None, "n_gpu_layers": 9, **expected}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--main-gpu 0 --tensor-split 1,1", "give one"),
        ("--tensor-split 1,x", "is not a list of shares such as 3,1"),
        ("--tensor-split 0,0", "one of them above 0"),
        ("--tensor-split -1,2", "numbers from 0 up"),
        ("--main-gpu 16", "--main-gpu"),
    ],
)
def test_impossible_gpus(arguments: str, message: str) -> None:
    result = _chat("--ask", "hi", *arguments.split())
    assert result.exit_code == 2 and message in result.stderr and not FakeEngine.instances


def test_gpus_reach_a_program_that_is_started() -> None:
    settings = EngineSettings(
        model=None, context=512, budget=64, reserve=None, method="restkv", prefill=None, kv_type="f16", threads=None,
        gpu_layers=-1, seed=None, unverified=False, tensor_split=(3.0, 1.0),
    )  # fmt: skip
    words = settings.arguments()
    assert words[words.index("--tensor-split") + 1] == "3.0,1.0" and words[words.index("--gpu-layers") + 1] == "-1"
    assert "--main-gpu" not in words


def test_defaults_are_those_of_the_configuration() -> None:
    _chat("--ask", "hi")
    assert FakeEngine.instances[0].evict == EvictConfig()
    assert FakeEngine.instances[0].n_ctx == DEFAULT_CONTEXT
    request = FakeEngine.instances[0].requests[0]
    assert {name: request[name] for name in CHAT_SAMPLING} == CHAT_SAMPLING and request["max_tokens"] == CHAT_ANSWER
    shown = CliRunner().invoke(chat.main, ["-h"])
    assert shown.exit_code == 0
    assert str(DEFAULT_CONTEXT) in shown.stdout and str(DEFAULT_BUDGET) in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "tiny"], "is not a size"),
        (["--budget", "3"], "budget must be"),
        (["--method", "best"], "'best' is not one of"),
        (["--prefill", "fast"], "'fast' is not one of"),
        (["--prefill", "recall"], "reads with an archive"),
        (["--archive", "rma"], "or the path of a file (as ./NAME)"),
        (["--archive", "ram", "--method", "h2o"], "counts votes"),
        (["--kv-type", "q3"], "is not one of f16"),
        (["--kv-type", "f16,f16,f16"], "is not one of f16"),
        (["--context", "0"], "--context"),
        (["--temp", "-1"], "--temp"),
        (["--threads", "0"], "--threads"),
        (["--model", "broken.gguf"], "Failed to load model"),
        (["--context", "2", "--system", "a b c d"], "the context has 2"),
        (["--file", "-", "--file", "-"], "can be given once"),
        (["--ask", " "], "--ask is empty"),
    ],
)
def test_bad_options_give_one_line(arguments: list[str], message: str) -> None:
    result = _chat("--ask", "hi", *arguments)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1 and message in errors[0], result.stderr
    assert result.stdout == ""


def test_tracebacks_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTKV_RAISE", "1")
    result = _chat("--ask", "hi", "--model", "broken.gguf")
    assert isinstance(result.exception, ValueError)


def test_document_on_stdin_needs_a_question() -> None:
    result = _chat("--file", "-", stdin=b"text")
    assert result.exit_code == 2 and "needs --ask" in result.stderr


# ---- documents ----


def test_documents_come_first_and_the_question_guides(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfalpha\r\nbeta\n")
    result = _chat("--file", str(tmp_path / "a.txt"), "--file", "-", "--ask", "why?", "--json", stdin=b"gamma")
    assert result.exit_code == 0, result.output
    engine = FakeEngine.instances[0]
    content = engine.requests[0]["messages"][0]["content"]
    assert content == "Document: a.txt\n\nalpha\nbeta\n\nDocument: standard input\n\ngamma\n\nwhy?"
    assert engine.guides == ["why?"]
    assert (engine.evict.archive, json.loads(result.stdout)["prefill_mode"]) == ("file", "recall")


def test_documents_without_an_archive_are_guided(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    result = _chat("--file", str(tmp_path / "a.txt"), "--ask", "why?", "--archive", "none", "--json")
    engine = FakeEngine.instances[0]
    assert engine.evict.prefill == json.loads(result.stdout)["prefill_mode"] == "guided"
    assert engine.evict.archive == "none"


def test_an_archive_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    result = _chat("--file", str(tmp_path / "a.txt"), "--ask", "why?", "--method", "h2o")
    assert result.exit_code == 0
    assert "evicted rows are not kept" in result.stderr and "votes" in result.stderr
    assert FakeEngine.instances[0].evict.prefill == "guided"


@pytest.mark.parametrize(("layers", "place"), [("0", "file"), ("4", "ram")])
def test_an_archive_lies_where_memory_is_free(tmp_path: Path, layers: str, place: str) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    _chat("--file", str(tmp_path / "a.txt"), "--ask", "why?", "--gpu-layers", layers)
    assert FakeEngine.instances[0].evict.archive == place


def test_prefill_of_documents_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    _chat("--file", str(tmp_path / "a.txt"), "--ask", "why?", "--prefill", "stream")
    assert FakeEngine.instances[0].evict.prefill == "stream"


@pytest.mark.parametrize("archive", ["ram", "file", "./rows.bin"])
def test_documents_are_read_with_the_archive(tmp_path: Path, archive: str) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    result = _chat("--file", str(tmp_path / "a.txt"), "--ask", "why?", "--archive", archive, "--json")
    assert FakeEngine.instances[0].evict == EvictConfig(archive=archive)
    assert json.loads(result.stdout)["prefill_mode"] == "recall"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"abc\x00def", "is binary"),
        (b"caf\xe9 au lait", "not UTF-8 text (byte 3)"),
        (b"%PDF-1.7 ...", "is a PDF"),
        (b"PK\x03\x04....", "zip archive"),
        (b"\xff\xfea\x00", "UTF-16"),
        (b"\xfe\xff\x00a", "UTF-16"),
        (b"\xff\xfe\x00\x00a\x00\x00\x00", "UTF-32"),
        (b"\x00\x00\xfe\xff\x00\x00\x00a", "UTF-32"),
        (b"GGUF\x03\x00", "--model"),
    ],
)
def test_hostile_documents_give_one_sentence(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "document"
    if content is not None:
        path.write_bytes(content)
    result = _chat("--file", str(path), "--ask", "hi")
    assert result.exit_code == 1
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert FakeEngine.instances == []  # refused before a model is loaded


def test_more_hostile_paths(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="is a directory"):
        read_document(str(tmp_path))
    with pytest.raises(DocumentError, match="cannot be read"):
        read_document("bad\0name")
    if os.path.exists("/dev/zero"):
        with pytest.raises(DocumentError, match="is binary"):
            read_document("/dev/zero")


def test_user_message_without_documents_is_the_question() -> None:
    assert user_message([], "q") == "q"
    assert user_message([Document("n", "t")], "q").endswith("\n\nq")


# ---- small parts ----


def test_open_and_joined_input() -> None:
    assert is_open("a\\") and is_open('"""a') and is_open('"""a\n\\')
    assert not is_open("a") and not is_open('"""a"""')
    assert joined("a\\\nb") == "a\nb"
    assert joined('x """a\\\nb""" y\\\nz') == "x a\\\nb y\nz"
    assert joined(" /etc is a folder ") == " /etc is a folder" and joined('"""/help"""') == " /help"


def test_prose_is_deterministic_and_long_enough() -> None:
    assert prose(300, seed=1) == prose(300, seed=1) != prose(300, seed=2)
    assert 300 <= len(prose(300).split()) < 350
    assert len(prose_tokens(77, lambda data: list(data)[::3])) == 77


def test_peak_memory_is_of_this_process_alone() -> None:
    """A child of a process that holds much memory reports its own peak."""
    ballast = bytearray(os.urandom(1 << 20) * 192)
    code = "from restkv_local.bench.process import peak_rss_bytes; print(peak_rss_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert peak_rss_bytes() > len(ballast)
    if sys.platform == "linux":
        assert 1 << 20 < int(child.stdout) < len(ballast)


def test_sampled_prefill_is_exact_for_growing_batches() -> None:
    starts = speed.sample_starts(131072, 512)
    assert starts[0] == 0 and starts[-1] == 131072 - 512 and len(starts) == 5
    # Seconds per token of a batch that starts at n: a constant and a part that grows with n.
    whole = [0.004 + 1e-6 * first for first in range(0, 131072, 512)]
    sampled = speed.mean_over(starts, [0.004 + 1e-6 * first for first in starts])
    assert sampled == pytest.approx(sum(whole) / len(whole), rel=1e-12)
    assert speed.sample_starts(700, 512) == [0]


def test_position_offsets_of_a_saved_state() -> None:
    import numpy as np

    def cache(n_cells: int, n_layers: int, row: int) -> bytes:
        cells = b"".join(np.array([100 + i, 1, 1], "<i4").tobytes() for i in range(n_cells))
        layer = np.array([1], "<i4").tobytes() + np.array([row], "<u8").tobytes() + bytes(row * n_cells)
        return np.array([1, n_cells], "<u4").tobytes() + cells + np.array([0, n_layers], "<u4").tobytes() + layer * (
            2 * n_layers
        )

    data = bytes(8) + cache(3, 2, 10) + cache(2, 1, 6)
    offsets = position_offsets(np.frombuffer(data, np.uint8))
    assert [int.from_bytes(data[at : at + 4], "little") for at in offsets] == [100, 101, 102, 100, 101]
    with pytest.raises(StockError, match="another layout"):
        position_offsets(np.frombuffer(data[:-1], np.uint8))


@pytest.mark.parametrize("lengths", ["4096,", "a", "0", "4096;8192"])
def test_bench_refuses_bad_contexts(lengths: str) -> None:
    result = CliRunner().invoke(bench.main, ["speed", "--contexts", lengths])
    assert result.exit_code == 2 and "Invalid value for '--contexts'" in result.stderr


def test_both_programs_take_the_same_engine_options() -> None:
    names = {name for name in EngineSettings.__dataclass_fields__ if name not in ("context", "prefill")}
    for command in (chat.main, bench.main.commands["speed"]):
        assert names <= {parameter.name for parameter in command.params}
