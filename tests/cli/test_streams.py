"""Standard streams that are closed or full: one sentence, never a traceback, and no file takes their number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from restkv_local.cli.bench import main as bench
from restkv_local.cli.chat import main as chat

ROOT = Path(chat.__file__).resolve().parents[3]
FAKE = Path(__file__).parents[1] / "support" / "cli_fake.py"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")


def _shell(redirections: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = f'exec "$0" "$@" {redirections}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable, str(FAKE), *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_closed_standard_input() -> None:
    assert _shell("<&-", "--ask", "hi").stdout == "I heard: hi\n"
    done = _shell("<&-")
    assert (done.returncode, done.stderr) == (1, "Error: standard input is empty; give a text to read\n")


@pytest.mark.parametrize("arguments", [("--ask", "hi"), ("--ask", "hi", "--json"), ("--help",)])
def test_closed_standard_output(arguments: tuple[str, ...]) -> None:
    done = _shell(">&-", *arguments)
    assert (done.returncode, done.stderr) == (
        1, "Error: standard output is closed; open it, or send it to a file\n",
    )  # fmt: skip


def test_closed_standard_error() -> None:
    done = _shell("2>&-", "--ask", "hi")
    assert (done.returncode, done.stdout) == (0, "I heard: hi\n")
    assert _shell("2>&-", "--nonsense").returncode == 2


def test_all_closed() -> None:
    done = _shell("<&- >&- 2>&-", "--ask", "hi")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_files_do_not_take_the_numbers_of_closed_streams() -> None:
    code = """
import os
from restkv_local.cli.program import Program
import click
@click.group(cls=Program, invoke_without_command=True)
def main():
    number = os.open(os.devnull, os.O_RDONLY)
    print(number > 2, [os.get_inheritable(n) for n in range(3)])
main()
"""
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" <&- 2>&-', sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "True [True, True, True]\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device")
@pytest.mark.parametrize("arguments", [("--ask", "hi"), ("--ask", "hi", "--json"), ("--help",), ("--version",)])
def test_full_standard_output(arguments: tuple[str, ...]) -> None:
    done = _shell(">/dev/full", *arguments)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_help_of_a_sub_command_is_no_failure() -> None:
    for program, command in ((chat.main, "doctor"), (bench.main, "speed")):
        result = CliRunner().invoke(program, [command, "--help"])
        assert result.exit_code == 0 and result.stderr == "", result.stderr
