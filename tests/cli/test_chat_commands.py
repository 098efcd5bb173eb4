"""What is typed in a conversation: commands with their other names, words that leave, files by their paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cli_fake import FakeEngine
from restkv_local.cli.chat.command import Leave
from restkv_local.cli.chat.commands import COMMANDS, execute, is_command
from restkv_local.cli.chat.session import Session
from restkv_local.cli.chat.ui import UI
from restkv_local.cli.chat.worker import Mailbox
from restkv_local.engine.documents import Document, DocumentError
from restkv_local.errors import ConfigError

Run = Callable[[str], str]


@pytest.fixture
def session() -> Session:
    mailbox = Mailbox()
    return Session(FakeEngine(on_progress=mailbox.progress), mailbox)


@pytest.fixture
def run(session: Session, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a line as the conversation does, and returns what it says."""

    def call(line: str) -> str:
        assert is_command(line)
        execute(line, session, UI())
        return " ".join(capsys.readouterr().err.split())

    return call


@pytest.mark.parametrize("line", ["/exit", "/quit", "/bye", "exit", "quit", "/bye "])
def test_words_that_leave(session: Session, line: str) -> None:
    assert is_command(line)
    with pytest.raises(Leave):
        execute(line, session, UI())


@pytest.mark.parametrize("line", [" exit", "exit now", "Exit?", " /help", "what is /etc?", "'quoted' words"])
def test_lines_that_are_messages(line: str) -> None:
    assert not is_command(line)


def test_names_and_other_names_are_told_apart() -> None:
    names = [name for command in COMMANDS for name in (command.name, *command.aliases)]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"/[a-z?]+", name) for name in names)


def test_help_names_every_command(run: Run) -> None:
    said = run("/help")
    assert all(command.usage in said for command in COMMANDS) and run("/?") == said


def test_several_files_quoted_and_escaped(run: Run, session: Session, tmp_path: Path) -> None:
    for name in ("a.txt", "my notes.txt", "c.txt"):
        (tmp_path / name).write_text(f"text of {name}")
    escaped = f"{tmp_path}/my\\ notes.txt"
    said = run(f"/file {tmp_path}/a.txt \"{tmp_path}/my notes.txt\" '{tmp_path}/c.txt' {escaped}")
    assert [document.name for document in session.documents] == ["a.txt", "my notes.txt", "c.txt", "my notes.txt"]
    assert said.startswith("a.txt: 13 characters")


@pytest.mark.parametrize("name", ["my notes.txt", "it's.txt", '"quoted".txt'])
def test_a_name_that_is_a_file_needs_no_quotes(run: Run, session: Session, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("text")
    run(f"/read {tmp_path}/{name}")
    assert [document.name for document in session.documents] == [name]


def test_home_and_dropped_files(run: Run, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b.txt").write_text("text")
    run("/file ~/a\\ b.txt")
    run(f"{tmp_path}/a\\ b.txt ")
    run(f"'{tmp_path}/a b.txt'")
    assert [document.name for document in session.documents] == ["a b.txt"] * 3


def test_of_several_files_all_or_none_are_taken(run: Run, session: Session, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DocumentError, match="'/no/such' does not exist"):
        run(f"/file {tmp_path}/a.txt /no/such")
    assert session.documents == []
    assert "needs a path" in run("/file") and "unknown command /no/such" in run("/no/such")
    assert "/clear takes nothing behind it" in run("/clear all")


def _ask(session: Session, question: str) -> None:
    session.ask(question, lambda event: None)


def test_undo_gives_question_and_documents_back(run: Run, session: Session) -> None:
    assert "no question yet" in run("/undo") and "no question yet" in run("/edit")
    _ask(session, "one")
    session.documents = [Document("d", "text")]
    _ask(session, "two\nlines")
    assert run("/undo") == "taken back: two...; its documents wait for the next one"
    assert [message["content"] for message in session.messages] == ["one", "I heard: one"]
    assert [document.name for document in session.documents] == ["d"]
    session.documents = []
    assert run("/edit") == "" and session.draft == "one" and session.messages == []


def test_undo_then_regen_is_guided_by_the_question_before(run: Run, session: Session) -> None:
    for question in ("one", "two"):
        _ask(session, question)
    run("/undo")
    run("/regen")
    assert FakeEngine.instances[-1].guides == ["one", "two", "one"]


def test_the_oldest_questions_are_dropped(run: Run, session: Session) -> None:
    for question in ("one", "two", "three", "four"):
        _ask(session, question)
    assert run("/drop") == "1 question forgotten; what is left is read again"
    assert run("/drop 2").startswith("2 questions") and session.messages[0]["content"] == "four"
    for wrong in ("/drop 0", "/drop -1", "/drop all"):
        assert "takes how many questions" in run(wrong)
    assert run("/drop 9").startswith("1 question ") and run("/drop") == "there is no question yet"
    assert session.messages == []


def test_the_system_prompt_is_shown_set_and_removed(run: Run, session: Session) -> None:
    assert "left to the model's template" in run("/system")
    assert run("/system be brief") == run("/system") == "the system prompt is be brief"
    _ask(session, "one")
    assert FakeEngine.instances[-1].requests[-1]["messages"][0] == {"role": "system", "content": "be brief"}
    assert run('/system ""') == "the system prompt is empty; the conversation will be read again"
    _ask(session, "two")
    assert FakeEngine.instances[-1].requests[-1]["messages"][0] == {"role": "system", "content": ""}
    run("/system default")
    _ask(session, "three")
    assert FakeEngine.instances[-1].requests[-1]["messages"][0]["role"] == "user"


def test_set_shows_and_sets(run: Run, session: Session) -> None:
    session.sampling = replace(session.sampling, makers={"top_k": 12})
    shown = run("/set")
    assert "temperature 0.2 (default)" in shown and "top-k 12 (the model's makers)" in shown
    assert run("/set temp 0.7") == "temperature is 0.7" and run("/set top_p=0.5") == "top-p is 0.5"
    run("/set parameter top-k 3")
    run("/set max-tokens 0")
    run("/set seed 5")
    _ask(session, "one")
    request = FakeEngine.instances[-1].requests[-1]
    chosen = {"temperature": 0.7, "top_p": 0.5, "top_k": 3, "max_tokens": None, "seed": 5}
    assert {name: request[name] for name in chosen} == chosen
    assert run("/set top-k default") == "top-k is 12 (the model's makers)"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("heat 1", "there is no setting 'heat'; there are temperature"),
        ("temperature hot", "temperature must be a number or default; got 'hot'"),
        ("top-k 1.5", "top-k must be a whole number"),
        ("top-p 2", "top-p must be a number from 0 to 1"),
        ("seed -1", "seed must be a whole number from 0"),
        ("max-tokens -1", "max-tokens must be a number from 0"),
        ("repetition maybe", "repetition must be stop or allow"),
    ],
)
def test_set_refuses_what_cannot_be(session: Session, line: str, message: str) -> None:
    before = session.sampling
    with pytest.raises(ConfigError, match=re.escape(message)):
        execute(f"/set {line}", session, UI())
    assert session.sampling == before


def test_set_needs_a_name_and_a_value(run: Run) -> None:
    assert "takes a name and a value" in run("/set seed") and "takes a name and a value" in run("/set seed 1 2")
