"""/why: the passages that the last answer stands on, as lines of a terminal."""

from __future__ import annotations

import pytest

from cli_fake import FakeEngine
from restkv_local.cli.chat.commands import execute
from restkv_local.cli.chat.session import Session
from restkv_local.cli.chat.ui import UI
from restkv_local.cli.chat.why import lines
from restkv_local.cli.chat.worker import Mailbox
from restkv_local.engine.report import Source


def test_lines_are_short_and_drive_no_terminal() -> None:
    text = "\n The \x1b[31mcode\t is\u200b 5. \n" + "word " * 100
    (shown,) = lines([Source(0, len(text), text, (0, 9), 0.874)])
    assert shown.startswith(" 87%  The [31mcode is 5. word word") and shown.endswith("word ...")
    assert len(shown) < 260 and shown.isprintable()


def test_why(capsys: pytest.CaptureFixture[str]) -> None:
    session, ui = Session(FakeEngine(), Mailbox()), UI()
    execute("/why", session, ui)
    assert "there is no answer yet" in capsys.readouterr().err
    session.ask("where is it?", lambda event: None)
    execute("/why", session, ui)
    out, err = capsys.readouterr()
    assert out == "" and err == " 90%  where is it?\nthe last 3 of its 4 tokens looked there\n"
    session.ask("weak?", lambda event: None)
    execute("/why", session, ui)
    assert " 15%  weak?\nthat is little: " in capsys.readouterr().err
    execute("/why now", session, ui)
    assert "takes nothing behind it" in capsys.readouterr().err
    session.clear()
    execute("/why", session, ui)
    assert "there is no answer yet" in capsys.readouterr().err
