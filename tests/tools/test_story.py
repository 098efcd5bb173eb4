"""tools/story.py: the facts stand once each, in the middle of equal parts of a text of that length."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

from lib.setup.source import ROOT

TOOL = ROOT / "tools" / "story.py"


def test_a_story_holds_its_facts(tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    said = subprocess.run([sys.executable, TOOL, file, "--words", "600"], capture_output=True, text=True, check=True)
    text = file.read_text(encoding="utf-8")
    facts = runpy.run_path(str(TOOL), run_name="story")["FACTS"]
    assert all(text.count(fact) == 1 and fact in said.stdout for fact in facts)
    assert 600 <= len(text.split()) < 720
    places = [text.index(fact) / len(text) for fact in facts]
    assert places == sorted(places) and places[0] < 0.2 and places[-1] > 0.8


def test_a_story_that_cannot_be_written(tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, TOOL, tmp_path, "--words", "600"], capture_output=True, text=True)
    assert said.returncode == 1 and said.stderr.startswith("story.py: ") and "Traceback" not in said.stderr
