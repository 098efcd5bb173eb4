"""What the tests of restkv-eval share: a tiny model with random weights, and engines that break off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import models


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, native: None) -> Path:
    """Two layers, two query heads for each KV head; tokens are bytes and a few pieces."""
    return Path(models.write_random(tmp_path_factory.mktemp("eval") / "tiny.gguf", "llama", seed=3))


def evaluate(*arguments: Any, engine: Any = None) -> Result:
    """Run restkv-eval on one thread."""
    from restkv_local.cli.eval import main as program

    words = [str(argument) for argument in arguments]
    if words[0] != "report" and "--threads" not in words:
        words += ["--threads", "1"]
    return CliRunner().invoke(program.main, words, obj={"engine": engine} if engine else None)


def lines(path: Path) -> list[dict[str, Any]]:
    """Records without what differs from run to run."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in found:
        del record["seconds"], record["run"]["date"]
    return found


class Stops:
    """Makes engines that stop, as Ctrl-C does, when so many prompts were read."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, *args: Any, **options: Any) -> Any:
        from restkv_local import Engine

        engine, outer = Engine(*args, **options), self
        read = engine.eval

        def limited(tokens: list[int]) -> None:
            if len(tokens) > 1:
                outer.left -= 1
                if outer.left < 0:
                    raise KeyboardInterrupt
            read(tokens)

        engine.eval = limited
        return engine
