"""restkv-chat on other screens and at other moments: 40 columns, no colour, a dumb terminal, Ctrl-C while loading."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from cli_terminal import run_in_terminal

FAKE = str(Path(__file__).parents[1] / "support" / "cli_fake.py")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def test_ctrl_c_while_loading_leaves_at_once_with_130(tmp_path: Path) -> None:
    with run_in_terminal(tmp_path, FAKE, "--model", "slow.gguf") as running:
        running.sees("loading the model")
        pressed = time.monotonic()
        running.press("\x03")
        running.sees("stopped")
        assert running.leaves() == 130 and time.monotonic() - pressed < 3  # of them most is Python's own end
        assert "loading" not in running.child.before


def test_forty_columns(tmp_path: Path) -> None:
    (tmp_path / "doc.txt").write_text("x " * 200)
    with run_in_terminal(tmp_path, FAKE, "--context", "4k", columns=40) as running:
        running.sees("/help lists commands")
        running.type(f"/file {tmp_path}/doc.txt\r")
        running.sees("400 characters")
        running.type("slow one\r")
        running.sees("reading doc.txt: [0-9]+ tokens")
        running.press("typed\rahead")  # not shown in the bar; Ctrl-C drops it
        running.sees("[0-9]+ %, [0-9.]+ tok/s, [0-9]+ s left")
        running.press("\x03")
        running.sees("stopped while reading")
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", running.child.before)
        frames = [part for part in re.split("[\r\n]+", plain) if "tok/s" in part]
        assert all(len(frame) <= 40 for frame in frames) and "typed" not in running.child.before
        running.type("exit\r")
        assert running.leaves() == 0


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_no_colour_and_a_dumb_terminal(tmp_path: Path, variables: dict[str, str]) -> None:
    question = "slow" + " word" * 60
    with run_in_terminal(tmp_path, FAKE, "--ask", question, variables=variables) as running:
        if variables.get("TERM") == "dumb":
            running.sees("read [0-9]+ of [0-9]+ tokens")
        else:
            running.sees("tok/s, about")
        assert not [code for code in COLOUR.findall(running.child.before) if re.search("3[0-7]|9[0-7]", code)]
        running.press("\x03")
        running.sees("stopped while reading")
        assert "^C" not in running.child.before
        assert running.leaves() == 130


def test_a_conversation_in_a_dumb_terminal(tmp_path: Path) -> None:
    with run_in_terminal(tmp_path, FAKE, variables={"TERM": "dumb"}) as running:
        running.sees("> ")
        running.press("hello\r")
        running.sees("I heard: hello")
        running.sees("> ")
        running.press("/bye\r")
        assert running.leaves() == 0
        assert "\x1b[" not in running.child.before


def test_a_question_is_edited(tmp_path: Path) -> None:
    with run_in_terminal(tmp_path, FAKE) as running:
        running.type("one\r")
        running.sees("I heard: one")
        running.type("/edit\r")
        running.type(" more\r")
        running.sees("I heard: one more")
        running.type("/quit\r")
        assert running.leaves() == 0
