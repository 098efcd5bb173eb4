"""Ctrl-C is heard in every phase, calls into llama.cpp included, and ends a program with 130."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from restkv_local.cli.chat import main as chat
from restkv_local.errors import Cancelled
from restkv_local.native import interrupts

ROOT = Path(chat.__file__).resolve().parents[3]
FAKE = Path(__file__).parents[1] / "support" / "cli_fake.py"

# A C function that calls back into Python, where Ctrl-C comes: what is raised there is dropped by ctypes.
IN_A_CALLBACK = """
import ctypes, signal
_COMPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def press_in_a_callback():
    def compare(a, b):
        signal.raise_signal(signal.SIGINT)
        return 0
    numbers = (ctypes.c_int * 2)(2, 1)
    ctypes.CDLL(None).qsort(numbers, ctypes.c_size_t(2), ctypes.c_size_t(4), _COMPARE(compare))
"""


def _press_in_a_callback() -> None:
    names: dict[str, object] = {"ctypes": ctypes, "signal": signal}
    exec(IN_A_CALLBACK, names)
    names["press_in_a_callback"]()  # type: ignore[operator]


def _run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{FAKE.parent}", **environment},
    )  # fmt: skip


# ---- the parts ----


def test_an_interrupt_in_a_callback_arrives_at_the_end_of_the_block() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts.late():
            _press_in_a_callback()
            steps.append(interrupts.came())
            with interrupts.late():  # the outer block delivers
                pass
            steps.append("still here")
    assert steps == [True, "still here"] and not interrupts.came()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_load_that_was_told_to_stop_is_an_interrupt() -> None:
    @interrupts.lately
    def load() -> None:
        signal.raise_signal(signal.SIGINT)
        interrupts.check()

    with pytest.raises(KeyboardInterrupt) as raised:
        load()
    assert isinstance(raised.value.__context__, Cancelled)


def test_a_handler_that_does_not_raise_is_called_once_and_the_load_is_cancelled() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with pytest.raises(Cancelled, match="Ctrl-C"):
            with interrupts.late():
                signal.raise_signal(signal.SIGINT)
                interrupts.check()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_other_threads_and_ignored_interrupts_are_left_alone() -> None:
    found: list[bool] = []

    def work() -> None:
        with interrupts.late():
            found.append(interrupts.came())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.late():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [False]


# ---- the programs ----


def test_an_interrupt_that_a_callback_drops_ends_the_program() -> None:
    program = IN_A_CALLBACK + """
import time
import click
from restkv_local.cli.program import Program
@click.group(cls=Program, invoke_without_command=True)
def main():
    press_in_a_callback()
    for _ in range(2000):
        time.sleep(0.01)
    print("nothing happened")
main()
"""
    done = _run(program)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


@pytest.mark.parametrize(("program", "arguments"), [
    ("chat", ["--ask", "hi"]), ("bench", ["needle"]), ("eval", ["niah", "--out", "{folder}/out"]),
])  # fmt: skip
def test_each_program_ends_with_130(program: str, arguments: list[str], tmp_path: Path) -> None:
    """An engine that is interrupted while it loads, as the real one then raises."""
    code = f"""
import signal
from restkv_local.cli.{program}.main import main
def load(*arguments, **options):
    signal.raise_signal(signal.SIGINT)
main(obj={{"engine": load}})
"""
    done = _run(code, *[argument.format(folder=tmp_path) for argument in arguments])
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr and "stopped" in done.stderr and done.stdout == ""


def test_waiting_for_standard_input() -> None:
    child = subprocess.Popen(
        [sys.executable, str(FAKE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RESTKV_FAKE_READY": "1"},
    )  # fmt: skip
    assert child.stderr is not None and child.stderr.readline() == "ready\n"
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, "", "stopped\n")


def test_while_a_program_is_imported() -> None:
    code = """
import sys
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Press())
from restkv_local.cli.start import chat
chat()
"""
    done = _run(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("said", ["loaded meta data", "load_tensors", "constructing llama_context", "llama_kv_cache"])
def test_real_load_is_interrupted_inside_the_log_callback(said: str) -> None:
    code = f"""
import logging, os, signal
class Press(logging.Handler):
    def emit(self, record):
        if {said!r} in record.getMessage():
            logger.removeHandler(self)
            signal.raise_signal(signal.SIGINT)
logger = logging.getLogger("restkv_local.llama")
logger.setLevel(logging.DEBUG)
logger.addHandler(Press())
from restkv_local.cli.chat.main import main
main()
"""
    done = _run(code, "--ask", "Hello", "--max-tokens", "2", "--context", "1024")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


@pytest.mark.usefixtures("native")
def test_real_load_stops_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are not read to their end."""
    from restkv_local import Engine
    from restkv_local.engine import construct

    asked: list[float] = []

    def goes_on(progress: float, data: object) -> bool:
        asked.append(progress)
        if progress > 0.3:
            signal.raise_signal(signal.SIGINT)
        return not interrupts.came()

    monkeypatch.setattr(construct, "_goes_on", goes_on)
    with pytest.raises(KeyboardInterrupt):
        Engine(n_ctx=512, use_mmap=False)
    assert 0.3 < max(asked) < 1.0
    monkeypatch.undo()
    Engine(n_ctx=512).close()
