"""What a first conversation meets: answers that end badly, a full context, pipes, and sentences in the chat's words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli_fake import FakeEngine
from restkv_local.cli.chat import main as chat
from restkv_local.cli.chat.overflow import suggestion, way_out
from restkv_local.cli.chat.sampling import Sampling
from restkv_local.cli.chat.session import Session
from restkv_local.cli.chat.worker import Mailbox
from restkv_local.cli.words import in_options
from restkv_local.config import EvictConfig
from restkv_local.engine.answers.chat_templates import NO_TEMPLATE
from restkv_local.engine.documents import Document
from restkv_local.errors import ConfigError, ContextOverflow
from restkv_local.sampling import CHAT_ANSWER

ROOT = Path(chat.__file__).resolve().parents[3]
FAKE = Path(__file__).parents[1] / "support" / "cli_fake.py"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESTKV_RAISE", raising=False)
    FakeEngine.instances.clear()


def _chat(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(chat.main, list(arguments), input=stdin, obj={"engine": FakeEngine})


def _said(result: Result) -> str:
    return " ".join(result.stderr.split())


# ---- how an answer ends ----


def test_an_answer_that_repeats_itself_is_stopped() -> None:
    result = _chat("--ask", "stuck", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["finish_reason"], found["stopped"]) == (0, "repetition", False)
    assert 400 <= len(found["answer"]) < 500
    said = "the answer repeated itself and was stopped; --set repetition=allow lets it go on"
    assert said in _said(result) and said in found["notices"]


def test_an_answer_may_repeat_itself_where_it_is_wanted() -> None:
    found = json.loads(_chat("--ask", "stuck", "--json", "--set", "repetition=allow").stdout)
    assert found["finish_reason"] == "stop" and len(found["answer"]) > 10000


def test_an_empty_answer_is_said_to_be_empty() -> None:
    result = _chat("--ask", "nothing")
    assert result.exit_code == 0 and "the answer is empty" in _said(result)


def test_an_answer_has_a_limit_that_can_be_moved() -> None:
    result = _chat("--ask", "long", "--json", "--max-tokens", "7", "--set", "repetition=allow")
    assert json.loads(result.stdout)["finish_reason"] == "length"
    assert "the answer was cut at 7 tokens; --max-tokens N allows more" in _said(result)
    assert FakeEngine.instances[-1].requests[0]["max_tokens"] == 7
    _chat("--ask", "hi", "--max-tokens", "0")
    assert FakeEngine.instances[-1].requests[0]["max_tokens"] is None
    _chat("--ask", "hi")
    assert FakeEngine.instances[-1].requests[0]["max_tokens"] == CHAT_ANSWER


def test_a_full_context_is_told_from_a_limit() -> None:
    result = _chat("--ask", "long", "--json", "--context", "12", "--set", "repetition=allow")
    assert json.loads(result.stdout)["finish_reason"] == "context"
    assert "all 12 positions of the context are used; --context N has room for more" in _said(result)


def test_a_question_that_does_not_fit_is_told_a_context(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 5000)
    result = _chat("--file", f"{tmp_path}/a.txt", "--ask", "why?", "--context", "4k")
    assert result.exit_code == 1
    said = "takes 5,003 positions and the context has 4,096; give it more with --context 8k, or less text"
    assert said in _said(result) and "n_ctx" not in result.stderr


def test_ways_out_of_a_full_context_in_a_conversation() -> None:
    session = Session(FakeEngine(), Mailbox(), Sampling(max_tokens=100))
    error = ContextOverflow("Requested tokens (5000) exceed context window of 4096", 5000, 4096)
    assert way_out(error, session, typed=True).endswith("has 4,096; make it shorter, or start with --context 8k")
    session.documents = [Document("d", "text")]
    assert "/clear forgets the documents, or start with" in way_out(error, session, typed=True)
    session.ask("one", lambda event: None)
    assert way_out(error, session, typed=True) == (
        "the conversation with this question takes 5,000 positions and the context has 4,096; "
        "/drop forgets the oldest question, /clear all of them; or start with --context 8k"
    )


@pytest.mark.parametrize(("positions", "typed"), [(1, "1k"), (1024, "1k"), (1025, "2k"), (131073, "256k")])
def test_a_context_that_has_room(positions: int, typed: str) -> None:
    assert suggestion(positions) == typed


# ---- what the makers want ----


def test_system_prompt_and_sampling_of_the_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    described = {"general.name": "SmolLM2 135M", "tokenizer.chat_template": "an assistant named SmolLM"}
    monkeypatch.setattr(FakeEngine, "described", described)
    _chat("--ask", "hi", "--temp", "0.9")
    request = FakeEngine.instances[-1].requests[0]
    assert request["messages"][0] == {"role": "system", "content": ""}
    assert (request["temperature"], request["top_p"]) == (0.9, 0.9)
    _chat("--ask", "hi", "--system", "be brief")
    assert FakeEngine.instances[-1].requests[0]["messages"][0] == {"role": "system", "content": "be brief"}


def test_values_of_a_file_that_cannot_be_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "described", {"general.sampling.temp": "-3"})
    assert "general.sampling.temp = -3" in _said(_chat("--ask", "hi"))


# ---- pipes and options ----


def test_what_is_piped_in_is_a_document_of_the_question() -> None:
    result = _chat("--ask", "why?", stdin=b"some text")
    assert result.stdout == "I heard: why?\n"
    content = FakeEngine.instances[0].requests[0]["messages"][0]["content"]
    assert content == "Document: standard input\n\nsome text\n\nwhy?"
    assert FakeEngine.instances[0].evict.archive == "file"  # read as documents are


def test_an_empty_pipe_is_said() -> None:
    result = _chat("--ask", "why?")
    assert result.exit_code == 0 and "standard input holds no text" in _said(result)
    assert FakeEngine.instances[0].requests[0]["messages"][0]["content"] == "why?"


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("command", "document"), [("cat {file} | {chat}", True), ("{chat} < {file}", True), ("{chat} < /dev/null", False)]
)
def test_standard_input_of_a_shell(tmp_path: Path, command: str, document: bool) -> None:
    (tmp_path / "a.txt").write_text("one two three four")
    program = f"{sys.executable} {FAKE} -p why? --json"
    done = subprocess.run(
        command.format(file=tmp_path / "a.txt", chat=program), shell=True, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert json.loads(done.stdout)["prompt_tokens"] == (8 if document else 1), done.stderr
    assert "standard input" not in done.stderr or document


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX pipe")
def test_a_pipe_without_an_end_is_said() -> None:
    """As of a program that starts this one and leaves a pipe open."""
    code = (
        f"import sys; sys.path.insert(0, {str(FAKE.parent)!r}); sys.argv = ['restkv-chat', '-p', 'why?']\n"
        "from cli_fake import FakeEngine\n"
        "from restkv_local.cli.chat import main\n"
        "main._PATIENCE = 0.05\n"
        "main.main(obj={'engine': FakeEngine})\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stderr is not None and "waiting for a text on standard input" in child.stderr.readline()
    out, _ = child.communicate("the text", timeout=60)
    assert (child.returncode, out) == (0, "I heard: why?\n")


def test_short_options_and_lengths(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    result = _chat("-m", "m.gguf", "-c", "128K", "-f", f"{tmp_path}/a.txt", "-p", "why?", "-t", "3")
    engine = FakeEngine.instances[0]
    assert result.exit_code == 0 and engine.guides == ["why?"]
    assert (engine.model, engine.n_ctx, engine.options["n_threads"]) == ("m.gguf", 131072, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-c 1k5", "'1k5' is not a valid integer range"),
        ("-c 100M", "is not in the range 2<=x<=16777216"),
        ("-t 1000000", "is not in the range 1<=x<=512"),
        ("--set heat=1", "--set heat=1: there is no setting 'heat'"),
        ("--set seed", "--set seed: seed must be a whole number"),
    ],
)
def test_options_that_cannot_be(arguments: str, message: str) -> None:
    result = _chat("--ask", "hi", *arguments.split())
    assert result.exit_code == 2 and message in _said(result) and not FakeEngine.instances


def test_a_format_of_the_conversation() -> None:
    assert _chat("--ask", "hi", "--chat-format", "qa").exit_code == 0
    assert FakeEngine.instances[-1].options["chat_format"] == "qa"
    result = _chat("--ask", "hi", "--chat-format", "nonsense")
    assert result.exit_code == 1 and "--chat-format nonsense is not known to llama-cpp-python" in _said(result)
    assert not FakeEngine.instances[-1].requests and FakeEngine.instances[-1].closed


def test_help_of_doctor_into_a_pipe() -> None:
    done = subprocess.run(
        [sys.executable, str(FAKE), "doctor", "--help"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Usage: ")


# ---- sentences ----


def test_sentences_name_options() -> None:
    assert "--chat-format qa" in in_options(NO_TEMPLATE) and "(a base model?)" in in_options(NO_TEMPLATE)
    assert in_options("the largest n_ctx that fits is 512, or keep it in a file with archive='file'") == (
        "the largest --context that fits is 512, or keep it in a file with --archive file"
    )
    assert in_options("set unverified=True in EvictConfig to evict anyway, or method='full' to keep every cell") == (
        "give --unverified to evict anyway, or --method full to keep every cell"
    )
    with pytest.raises(ConfigError) as refused:
        EvictConfig(prefill="recall")
    assert in_options(str(refused.value)) == "--prefill recall reads with an archive: give --archive ram or file too"
    assert in_options("read with --context 8k and my_n_ctx") == "read with --context 8k and my_n_ctx"
    with pytest.raises(ConfigError) as refused:
        EvictConfig(method="full", archive="ram")
    assert in_options(str(refused.value)).endswith("use --archive none")


def test_a_refusal_names_options() -> None:
    result = _chat("--ask", "hi", "--archive", "ram", "--method", "full")
    assert "--method full keeps every cell: there is nothing to archive; use --archive none" in _said(result)
