"""Where an archive lies and what becomes of it; stops, failures and damage while it is read; what has none."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import SMALL, TEXT, answer, logits
from restkv_local.errors import ArchiveError, Cancelled, ConfigError, LibraryError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

from restkv_local.native.binding import LIBRARY

TOKENS = [3 + byte for byte in TEXT.encode()]


def made_of(path: Path, archive: Any = "ram", **options: Any) -> Engine:
    return Engine(path, **{"n_threads": 1, "n_ctx": 2048, "evict": SMALL.with_(archive=archive), **options})


@pytest.fixture
def tokens() -> list[int]:
    return TOKENS


def recalls(engine: Engine) -> int:
    """Since the engine was made."""
    stats = engine._facts_open.archive
    assert stats is not None
    return int(stats.n_recalls)


def file_of(engine: Engine) -> Path:
    archive = engine.report().archive
    assert archive is not None and archive.place == "file" and archive.path is not None
    return Path(archive.path)


# ---- files ---------------------------------------------------------------------------------------


def test_a_file_of_its_own_has_no_name(
    model: Path, recalling: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = made_of(model, "file")
    if sys.platform != "win32":
        assert not list(tmp_path.iterdir()) and file_of(made) == tmp_path, "nothing that a kill could leave"
    if sys.platform == "linux":
        open_files = [Path("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
        (facts,) = [file.stat() for file in open_files if file.exists() and str(tmp_path) in os.readlink(file)]
        assert facts.st_size >= made.plan.archive.bytes  # type: ignore[union-attr]
        assert facts.st_mode & 0o077 == 0, "rows tell of the text"
    for engine in (made, recalling):
        engine.eval(TOKENS[:600])
    np.testing.assert_array_equal(logits(made), logits(recalling), "as in memory")
    made.close()
    assert not list(tmp_path.iterdir())
    made.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open keeps its name there")
def test_a_killed_process_leaves_nothing(model: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from restkv_local import Engine, EvictConfig\n"
        "e = Engine(sys.argv[1], 1024, EvictConfig(budget=64, reserve=64, archive=sys.argv[2]), n_threads=1)\n"
        "e.eval(list(range(5, 255)))\n"
        "print(e.report().archive.rows, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    named = tmp_path / "rows.archive"
    for archive, left in (("file", []), (named, [named])):
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", code, str(model), str(archive)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == -signal.SIGKILL and int(done.stdout) > 0, done.stderr
        assert list(tmp_path.iterdir()) == left, "a name that was given stays: the next one makes it anew"


def test_a_file_with_a_name_goes_too_and_is_made_anew(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.archive"
    made = made_of(model, file)
    made.eval(TOKENS[:600])
    assert file_of(made) == file and made.evict.archive == file
    with pytest.raises(ConfigError, match="another engine works in"):
        made_of(model, str(file))
    left = file.read_bytes()
    made.close()
    assert not file.exists()
    file.write_bytes(left)  # as after a crash
    made = made_of(model, str(file))
    assert made.report().archive.rows == 0  # type: ignore[union-attr]
    made.close()
    assert not file.exists()


def test_a_file_that_is_something_else_is_left_alone(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("chapter one")
    with pytest.raises(ArchiveError, match="is not an archive"):
        made_of(model, str(file))
    assert file.read_text() == "chapter one"
    made_of(model, tmp_path / "other").close()


def test_a_file_goes_when_python_ends(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from restkv_local import Engine, EvictConfig\n"
        "e = Engine(sys.argv[1], 1024, EvictConfig(budget=64, reserve=64, archive=sys.argv[2]), n_threads=1)\n"
        "e.eval(list(range(5, 255)))\n"
        "print(e.report().archive.rows)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(tmp_path / "rows.archive")], capture_output=True, text=True
    )
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_no_answer(model: Path, tmp_path: Path) -> None:
    made = made_of(model, tmp_path / "rows.archive")
    made.eval(TOKENS[:600])
    expected = logits(made)
    made.reset()
    made.eval(TOKENS[:480])
    file = file_of(made)
    rows = file.read_bytes()
    with file.open("r+b") as stream:
        start, end = len(rows) // 50, len(rows) // 25  # keys of the first layer, far from its end
        stream.seek(start)
        stream.write(bytes(255 - byte for byte in rows[start:end]))
    for use in (lambda: made.eval(TOKENS[480:600]), lambda: made.recall("Who?")):
        with pytest.raises(ArchiveError, match="rows.archive"):
            use()
        assert made.n_tokens == made.report().positions == 480, "what is live stays"
    made.eval(TOKENS[480:481])
    assert made.n_tokens == 481, "and an answer goes on"
    made.reset()
    made.eval(TOKENS[:600])
    np.testing.assert_array_equal(logits(made), expected, "what is written anew is whole")
    made.close()


# ---- stops and failures --------------------------------------------------------------------------


def test_cancel_between_chunks_leaves_what_was_read(recalling: Engine, tokens: list[int]) -> None:
    recalling.eval(tokens[:600])
    expected = logits(recalling)
    recalling.reset()
    recalling.on_progress = lambda done, total: recalling.cancel() if done == 320 else None
    with pytest.raises(Cancelled):
        recalling.eval(tokens[:600])
    recalling.on_progress = None
    assert recalling.n_tokens == 320
    recalling.eval(tokens[320:600])
    np.testing.assert_array_equal(logits(recalling), expected)


def test_cancel_at_any_moment_leaves_whole_chunks(smollm2: Path) -> None:
    """In the middle of a chunk, where some layers have recalled and others have not."""
    made = made_of(smollm2)
    text = made.tokenize(TEXT.encode())[:480]
    start = time.perf_counter()
    made.eval(text)
    seconds, expected = time.perf_counter() - start, logits(made)
    for part in (0.4, 0.85):
        made.reset()
        timer = threading.Timer(part * seconds, made.cancel)
        timer.start()
        with contextlib.suppress(Cancelled):
            made.eval(text)
        timer.join()
        assert made.n_tokens % 160 == 0, "what was read stays, chunk by chunk"
        if made.n_tokens < len(text):
            made.eval(text[made.n_tokens :])
        np.testing.assert_array_equal(logits(made), expected)
    made.close()


def test_reading_is_off_after_a_stop(recalling: Engine, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    recalling.eval(tokens[:400])

    def stop(*args: Any) -> None:
        raise Cancelled("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(recalling, "_decode", stop)
        with pytest.raises(Cancelled):
            recalling.eval(tokens[400:500])
    before = recalls(recalling)
    answer(recalling, tokens[: recalling.n_tokens], 3)
    recalling.eval(tokens[:1])  # a token of an answer
    assert recalls(recalling) == before, "no token recalls for itself"


def test_a_failed_recall_takes_its_chunk_back(
    recalling: Engine, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recalling.eval(tokens[:600])
    expected = logits(recalling)
    recalling.reset()
    recalling.eval(tokens[:480])
    set_reading = LIBRARY.restkv_set_reading

    def failing(ctx: Any, on: bool, below: float) -> int:
        set_reading(ctx, on, below)
        return 0 if on else 8

    with monkeypatch.context() as patch:
        patch.setattr(LIBRARY, "restkv_set_reading", failing)
        with pytest.raises(ArchiveError):
            recalling.eval(tokens[480:600])
    assert recalling.n_tokens == recalling.report().positions == 480
    recalling.eval(tokens[480:600])
    np.testing.assert_array_equal(logits(recalling), expected)


# ---- states --------------------------------------------------------------------------------------


def test_states_are_refused(recalling: Engine, spm: Engine, tokens: list[int]) -> None:
    spm.eval(tokens[:50])
    state = spm.save_state()
    recalling.eval(tokens[:300])
    for refused in (recalling.save_state, lambda: recalling.load_state(state), lambda: recalling.set_cache({})):
        with pytest.raises(ConfigError, match="a state does not hold the archive: use save_session"):
            refused()
    assert recalling.n_tokens == 300, "as it was"
    recalling.set_cache(None)
