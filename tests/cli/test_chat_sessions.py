"""Conversations that are kept: /save, /load, /sessions, --session, --continue, and `restkv-chat sessions`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli_fake import FakeEngine
from restkv_local.cli.chat import main as chat
from restkv_local.cli.chat.commands import execute
from restkv_local.cli.chat.keeping import keep_if_cheap
from restkv_local.cli.chat.session import Session
from restkv_local.cli.chat.ui import UI
from restkv_local.cli.chat.worker import Event, Mailbox
from restkv_local.engine.documents import Document
from restkv_local.engine.session_file import SECTIONS, SessionFile, write_session
from restkv_local.errors import SessionError

Run = Callable[[Session, str], str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sessions go."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    FakeEngine.instances.clear()
    return tmp_path / "restkv-local" / "sessions"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(session: Session, line: str) -> str:
        execute(line, session, UI())
        return " ".join(capsys.readouterr().err.split())

    return call


def made() -> Session:
    mailbox = Mailbox()
    return Session(FakeEngine(on_progress=mailbox.progress), mailbox)


def _watch(event: Event | None) -> None:
    """Draws nothing."""


def _chat(*arguments: str) -> Result:
    return CliRunner().invoke(chat.main, list(arguments), input=b"", obj={"engine": FakeEngine})


def test_a_conversation_comes_back(run: Run, folder: Path) -> None:
    """With its system prompt, its documents that wait, and what /undo takes back."""
    session, other = made(), made()
    session.system, session.documents = "Be brief.", [Document("a.txt", "one")]
    session.ask("where?", _watch)
    session.documents = [Document("b.txt", "two")]
    said = run(session, "/save my book")
    assert said.startswith("session 'my book' saved: ") and said.endswith(" in 0.01 s")
    assert (folder / "my book.session").stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    assert run(other, "/load my book").startswith("session 'my book' opened: 10 positions, 1 question, ")
    assert (other.system, other.documents, other.messages) == (session.system, session.documents, session.messages)
    assert other.undo() == "where?" and [document.name for document in other.documents] == ["a.txt", "b.txt"]
    assert "session 'my book' saved" in run(session, "/save"), "under the name that it has"
    assert run(made(), "/save").startswith("session '20"), "the time"
    assert run(session, "/sessions").count("fake.gguf") == 2


def test_names_that_are_none(run: Run, folder: Path) -> None:
    for name in ("../x", "a/b", ".hidden", "x" * 65, "a\x1bb", "a."):
        with pytest.raises(SessionError, match="is no name for a session"):
            run(made(), f"/save {name}")
    with pytest.raises(SessionError, match="there is no session 'nothing'; there are: none"):
        run(made(), "/load nothing")
    assert "takes the name of a session" in run(made(), "/load")
    assert "no session yet" in run(made(), "/sessions")


def test_what_is_no_conversation_changes_nothing(run: Run, folder: Path) -> None:
    session = made()
    session.ask("where?", _watch)
    run(session, "/save a")
    with SessionFile(folder / "a.session") as file:
        header = file.header
    wrong: list[dict[str, Any]] = [
        {"notes": {}},
        {"notes": {**header["notes"], "system": 3}},
        {"notes": {**header["notes"], "documents": [{"name": "a"}]}},
        {"notes": {**header["notes"], "documents": [{"name": 1, "text": "a"}]}},
        {"notes": {**header["notes"], "asked": [3]}},
        {"notes": {**header["notes"], "asked": []}},
        {"messages": ["a", "b"]},
        {"notes": {**header["notes"], "documents": [{"name": "a", "text": 1}]}},
        {"messages": header["messages"][:1]},
        {"messages": [{"role": "user", "content": []}, {"role": "assistant", "content": ""}]},
    ]
    before = list(session.messages)
    for change in wrong:
        write_session(folder / "b.session", {**header, **change}, {name: (0, []) for name in SECTIONS})
        with pytest.raises(SessionError, match="'b' holds no conversation of restkv-chat"):
            run(session, "/load b")
        assert session.messages == before and session.name == "a"


def test_clear_leaves_what_was_saved(run: Run) -> None:
    session = made()
    session.ask("where?", _watch)
    run(session, "/save a")
    assert run(session, "/clear") == "the conversation is empty; session 'a' stays as it was saved"
    assert session.name is None


def test_answers_are_saved_as_they_come_where_that_is_cheap(run: Run, folder: Path) -> None:
    session = made()
    session.ask("where?", _watch)
    keep_if_cheap(session, UI())
    assert not folder.exists(), "it has no name"
    for seconds, saved in ((None, True), (0.4, True), (60.0, False)):
        session.name, session.save_seconds = f"took {seconds}", seconds
        keep_if_cheap(session, UI())
        assert (folder / f"took {seconds}.session").exists() == saved


def test_options_go_on_with_a_session(folder: Path) -> None:
    for option in (["--session", "a"], ["--session", "a"], ["--continue"]):
        result = _chat("--ask", "where?", "--model", "m.gguf", *option)
        assert result.exit_code == 0, result.output
    assert "session 'a' opened" in result.stderr and "session 'a' saved" in result.stderr
    assert len(FakeEngine.instances[-1].requests[0]["messages"]) == 5
    both = _chat("--ask", "x", "--session", "a", "--continue")
    assert both.exit_code == 2 and "leave one of them out" in both.stderr
    (folder / "a.session").unlink()
    none = _chat("--ask", "x", "--continue")
    assert none.exit_code == 1 and "there is no session to continue" in none.stderr


def test_a_broken_session_ends_the_program_in_a_sentence(folder: Path) -> None:
    _chat("--ask", "where?", "--model", "m.gguf", "--session", "a")
    path = folder / "a.session"
    path.write_bytes(path.read_bytes()[:-3])
    result = _chat("--ask", "where?", "--model", "m.gguf", "--session", "a")
    assert result.exit_code == 1 and "is cut short or damaged" in result.stderr
    assert FakeEngine.instances[-1].closed


def test_the_program_for_sessions(folder: Path) -> None:
    assert "no session yet" in _chat("sessions").stdout
    for name in ("a", "b"):
        _chat("--ask", f"where is {name}?", "--model", "m.gguf", "--session", name)
    os.utime(folder / "a.session", (1, 1))
    (folder / "c.session").write_bytes(b"x")
    (folder / ".d.session.part").write_bytes(b"x")
    lines = _chat("sessions", "list").stdout
    assert [line.split()[0] for line in lines.splitlines() if line[0] != " "] == ["c", "b", "a"]
    assert "is no session of restkv-local" in " ".join(lines.split())
    shown = _chat("sessions", "show", "a").stdout
    assert "fake.gguf" in shown and "where is a?" in shown and str(folder / "a.session") in shown
    assert _chat("sessions", "delete", "c").stdout == "session 'c' deleted\n" and not (folder / "c.session").exists()
    missing = _chat("sessions", "show", "c")
    assert missing.exit_code == 1 and "there is no session 'c'; there are: b, a" in missing.stderr


def test_json_says_what_was_opened_and_saved() -> None:
    _chat("--ask", "where?", "--model", "m.gguf", "--session", "a")
    found = json.loads(_chat("--ask", "where?", "--model", "m.gguf", "--session", "a", "--json").stdout)
    assert any("session 'a' opened" in notice for notice in found["notices"])
