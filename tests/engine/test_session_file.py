"""The file of a session: whole or not there, and whatever it holds, one sentence."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from hostile_sessions import damaged, other_header
from restkv_local.engine.session_file import SECTIONS, SessionFile, write_session
from restkv_local.engine.session_header import look
from restkv_local.errors import SessionError

HEADER: dict[str, Any] = {
    "tokens": 3, "rows": 2, "seed": 1, "archive": ["f16", "f16"], "evicted": False, "origin": {"budget": 96},
    "messages": [{"role": "user", "content": "é"}], "notes": {"a": {"b": 1}}, "model": "m.gguf", "saved": "2020",
}  # fmt: skip


def write(path: Path, seed: int = 0, n: int = 3000, header: dict[str, Any] = HEADER) -> Path:
    rng = random.Random(seed)
    write_session(path, header, {name: (n, [rng.randbytes(n // 3)] * 3) for name in SECTIONS})
    return path


def whole(path: Path) -> bytes:
    """All that a session holds."""
    look(path)
    with SessionFile(path) as file:
        return b"".join(bytes(file.read(name)) for name in SECTIONS)


def refused(path: Path, why: str) -> None:
    with pytest.raises(SessionError, match=why) as caught:
        whole(path)
    assert "\n" not in str(caught.value) and str(path.name) in str(caught.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    found = look(path)
    assert (found.tokens, found.rows, found.model, found.bytes) == (3, 2, "m.gguf", path.stat().st_size)
    assert found.messages == HEADER["messages"] and found.notes == HEADER["notes"]
    assert len(whole(path)) == 4 * 3000 and whole(path) != whole(write(tmp_path / "b", seed=1))
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_no_session(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    data = path.read_bytes()
    for content, why in (
        (b"", "no session|cut short"),
        (b"GGUF" + data[4:], "is no session of restkv-local"),
        (data[:20], "is cut short"),
        (data[:-1], "is cut short or damaged"),
        (data + b"x", "is cut short or damaged"),
        (data[:8] + b"\x02" + data[9:], r"newer restkv-local \(schema 2"),
        (data[:12] + b"\xff\xff\xff\xff" + data[16:], "its header would take 4294967295 bytes"),
        (data[:-1] + bytes([data[-1] ^ 1]), "its section 'rows' does not match its checksum"),
    ):
        path.write_bytes(content)
        refused(path, why)
    refused(tmp_path / "nothing", "does not exist")
    refused(tmp_path, "is no file|cannot be read")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "is no file")
    # a file of a terabyte that is not there: nothing is made room for, and nothing is read through
    path.write_bytes(data)
    os.truncate(path, 1 << 40)
    refused(path, "is cut short or damaged")


def test_hostile_files(tmp_path: Path) -> None:
    """Whatever is changed: one sentence, or the very same contents."""
    path, other = write(tmp_path / "a"), tmp_path / "b"
    data, contents = path.read_bytes(), whole(path)
    refusals = 0
    for seed in range(400):
        rng = random.Random(seed)
        other.write_bytes((damaged if seed % 2 else other_header)(data, rng))
        try:
            assert whole(other) == contents
        except SessionError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert 250 < refusals < 400


def test_a_failure_keeps_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    before = path.read_bytes()

    def pieces() -> Iterable[bytes]:
        yield b"x"
        raise OSError(28, "No space left on device")

    for broken in ((10, pieces()), (10, [b"x"])):
        with pytest.raises(SessionError, match="No space left on device|has 1 bytes where 10"):
            write_session(path, HEADER, {**dict.fromkeys(SECTIONS, (0, [])), "state": broken})
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["a"]
    with pytest.raises(SessionError, match="cannot be written"):
        write(tmp_path / "no" / "folder")
    with pytest.raises(SessionError, match="40 MiB of messages"):
        write(path, header={**HEADER, "messages": ["x" * (40 << 20)]})
    assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_two_programs_that_save_one_session(tmp_path: Path) -> None:
    import fcntl

    path = write(tmp_path / "a")
    part = tmp_path / ".a.part"
    with part.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SessionError, match="is being saved by another program"):
            write(path, seed=1)
    part.unlink()
    os.symlink(path, part)
    with pytest.raises(SessionError, match="cannot be written"):
        write(path, seed=1)
    assert whole(path) == whole(write(tmp_path / "b"))


def killed_while_saving(path: Path, rng: random.Random, seconds: float) -> bool:
    """A process that saves another session and is killed at some moment; whether that was before it was done."""
    child = os.fork()
    if child == 0:
        write(path, seed=rng.randrange(1 << 30), n=300_000)
        os._exit(0)
    time.sleep(rng.random() * seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_while_saving(tmp_path: Path) -> None:
    path, rng = write(tmp_path / "a", n=300_000), random.Random(1)
    start = time.perf_counter()
    write(path, n=300_000)
    seconds = time.perf_counter() - start
    killed = 0
    for _ in range(20):
        killed += killed_while_saving(path, rng, 1.5 * seconds)
        assert len(whole(path)) == 4 * 300_000, "the old one or the new one"
    assert killed > 0
    write(path, n=300_000)
    assert os.listdir(tmp_path) == ["a"], "nothing is left of those that were killed"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        where, source = Path(name) / "a", random.Random(2)
        write(where, n=300_000)
        hits = 0
        for _ in range(int(sys.argv[1])):
            hits += killed_while_saving(where, source, 0.02)
            whole(where)
        print(f"{hits} of {sys.argv[1]} were killed while they saved; each time a whole session was there")
