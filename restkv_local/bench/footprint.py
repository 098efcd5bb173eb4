"""What `restkv-bench memory` measures: peak memory of restkv-chat against the length of the text it reads."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..engine.settings import EngineSettings
from ..errors import RestkvError
from .origin import device, versions
from .process import python_program
from .prose import prose_tokens

QUESTION = "Who is named most often in this text?"
ANSWER_TOKENS = 16
# Positions of a context that the text leaves to the chat template, the question and the answer.
ROOM = 128

Say = Callable[[str], None]


def measure(
    settings: EngineSettings, contexts: tuple[int, ...], engine_class: Callable[..., Any], say: Say
) -> Iterator[dict[str, Any]]:
    """One row per context: the figures of `restkv-chat --json` in a process of its own that reads a text which fills
    the context but for ROOM positions, and answers; with the device, versions, settings and date.

    Yields the result so far after each row, so that a run that is stopped leaves what it measured.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for context in contexts:
            say(f"{context:,} positions: restkv-chat reads and answers")
            path = Path(folder, f"{context}.txt")
            path.write_bytes(_text(settings, context - ROOM, engine_class))
            rows.append(_chat(settings, context, path))
            measured = [row["context"] for row in rows]
            yield {
                "rows": list(rows),
                "device": device(),
                "versions": versions(),
                "settings": {**asdict(settings), "contexts": measured, "model": rows[0]["model"]},
                "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            }


def _text(settings: EngineSettings, n_tokens: int, engine_class: Callable[..., Any]) -> bytes:
    engine = settings.load(engine_class, evict=settings.evict(), n_ctx=n_tokens)
    try:
        text: bytes = engine.detokenize(prose_tokens(n_tokens, engine.tokenize))
        return text
    finally:
        engine.close()


def _chat(settings: EngineSettings, context: int, path: Path) -> dict[str, Any]:
    arguments = [
        *python_program("restkv_local.cli.chat.main"), *settings.arguments(), "--context", str(context),
        "--file", str(path), "--ask", QUESTION, "--max-tokens", str(ANSWER_TOKENS), "--temp", "0", "--json",
    ]  # fmt: skip
    nothing = subprocess.DEVNULL  # what is piped in would be a document
    child = subprocess.run(
        arguments, stdin=nothing, capture_output=True, text=True, env=os.environ, check=False
    )
    if child.returncode:
        reason = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise RestkvError(f"restkv-chat failed on {context} positions: {reason[0]}")
    row: dict[str, Any] = json.loads(child.stdout)
    return {name: value for name, value in row.items() if name != "answer"}
