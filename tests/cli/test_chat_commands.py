"""What is typed in a conversation: commands with their other names, words that leave, files by their paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_fake import FakeEngine
from restkv_local.cli.chat.command import Leave
from restkv_local.cli.chat.commands import COMMANDS, execute, is_command
from restkv_local.cli.chat.session import Session
from restkv_local.cli.chat.ui import UI
from restkv_local.cli.chat.worker import Mailbox
from restkv_local.engine.documents import DocumentError

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
