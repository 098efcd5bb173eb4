"""An engine inside a program of its own: it is closed with its block, logs and does not print, and leaves nothing."""

from __future__ import annotations

import gc
import logging
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from engines import TEMPLATE, TEXT, load
from models import write_random
from restkv_local.errors import ClosedError, LibraryError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)


def test_a_block_closes_its_engine(model: Path) -> None:
    with load(model) as engine:
        assert isinstance(engine, Engine)
        engine.eval([5, 6, 7])
    with pytest.raises(ClosedError, match=r"^this engine is closed; make a new one$"):
        engine.eval([5])
    engine.close()
    with pytest.raises(ClosedError), engine:
        raise AssertionError("a closed engine was entered")


def test_a_block_that_raises_closes_its_engine(model: Path) -> None:
    with pytest.raises(KeyError, match="of the program"), load(model) as engine:
        raise KeyError("of the program")
    with pytest.raises(ClosedError):
        engine.report()


def test_an_engine_that_nobody_holds_is_freed(model: Path) -> None:
    engine = load(model)
    engine.create_completion("The sea", max_tokens=2)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


def test_a_load_tells_how_far_it_is_and_can_be_stopped(model: Path) -> None:
    shares: list[float] = []
    load(model, on_load=shares.append).close()
    assert shares == sorted(shares) and shares[0] < 0.5 and shares[-1] == 1.0

    def stop(share: float) -> None:
        if share > 0.5:
            raise KeyError(share)

    with pytest.raises(KeyError) as raised:
        load(model, on_load=stop)
    assert 0.5 < raised.value.args[0] < 1.0
    load(model).close()


def test_llama_cpp_speaks_below_info(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its warnings and errors keep their level; everything else is for who debugs."""
    from restkv_local.errors import ModelError

    with caplog.at_level(logging.DEBUG, "restkv_local.llama"):
        load(model).close()
        said = {record.levelno for record in caplog.records if record.name == "restkv_local.llama"}
        assert logging.DEBUG in said and not said - {logging.DEBUG, logging.WARNING}
        caplog.clear()
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(model.read_bytes()[:5000])
        with pytest.raises(ModelError):
            load(broken)
    assert any(record.levelno == logging.ERROR for record in caplog.records)


@pytest.mark.parametrize("verbose", [False, True])
def test_only_verbose_prints(model: Path, verbose: bool) -> None:
    """In a program that logs at INFO, as most do, and whose handler writes to standard output."""
    program = (
        "import logging, sys\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "from restkv_local import Engine, EvictConfig\n"
        "with Engine(sys.argv[1], 512, EvictConfig(budget=64, reserve=64), n_threads=1,\n"
        "            verbose=sys.argv[2] == 'True') as engine:\n"
        "    engine.eval([5, 6, 7])\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(model), str(verbose)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("done\n")
    if verbose:
        assert "llama_context" in done.stderr
    else:
        assert done.stderr == "" and "llama_context" not in done.stdout


def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/embedding.md from top to bottom, as one program, on a model with random weights."""
    page = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text(encoding="utf-8")
    write_random(tmp_path / "model.gguf", "llama", template=TEMPLATE)
    (tmp_path / "book.txt").write_text(TEXT[:1200], encoding="utf-8")
    for name in ("default_threads", "default_threads_batch"):
        monkeypatch.setattr(f"restkv_local.engine.core.{name}", lambda: 1)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for body in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(compile(body, "embedding.md", "exec"), names)
        names["book"] = TEXT * 7  # what is too long for the time that is left to it
    printed = capsys.readouterr().out
    found = [int(line.split()[0]) for line in printed.splitlines() if line.endswith("from the question before")]
    assert found[0] == 0 and found[1] > 600
    assert "tokens read" in printed and "the engine has stopped and takes the next call" in printed
    assert "model.gguf: restkv, budget 2048" in printed and '"weights_bytes": ' in printed


# Of memory, whatever the number of cycles: an allocator keeps some. One engine that is not freed holds 7 MB here.
GROWTH_MAX = 3 << 20

# What a process holds after some cycles, and after the rest.
CYCLES = """
import gc, os, sys
from restkv_local import Engine, EvictConfig

evict = EvictConfig(budget=64, reserve=64, archive="file")

def cycle():
    with Engine(sys.argv[1], 512, evict, n_threads=1) as engine:
        engine.create_completion("The sea is blue. " * 12, max_tokens=2)
        assert engine.report().n_evictions > 0

def held():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

for total in map(int, sys.argv[2:]):
    for _ in range(total):
        cycle()
    print(*held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds")
def test_engines_that_come_and_go_leave_nothing(model: Path, tmp_path: Path) -> None:
    """RESTKV_CYCLES=200 makes it many."""
    cycles = int(os.environ.get("RESTKV_CYCLES", "10"))
    command = [sys.executable, "-c", CYCLES, str(model), "10", str(cycles)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    before, after = (list(map(int, line.split())) for line in done.stdout.splitlines())
    assert after[1:] == before[1:], "file descriptors, threads"
    assert after[0] - before[0] < GROWTH_MAX, f"{cycles} cycles"
    assert not list(tmp_path.iterdir()), "files of archives"
