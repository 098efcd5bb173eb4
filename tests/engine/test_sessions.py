"""Sessions: a text that was read goes on from a file with the same tokens, and what does not fit changes nothing."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import SMALL, TEXT, answer, logits
from hostile_sessions import hostile
from hybrid import write_lfm2
from models import write_random
from restkv_local.errors import Cancelled, ConfigError, LibraryError, SessionError
from session_files import forged

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

KINDS = ("llama", "gemma3", "lfm2")
QUESTION = "Who writes the weather into the blue book?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sessions")


def made(path: Path, **options: Any) -> Engine:
    evict = options.pop("evict", SMALL).with_(unverified=True)
    return Engine(path, **{"n_threads": 1, "n_ctx": 1024, "evict": evict, **options})


def write(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.gguf"
    if path.exists():
        return path
    return write_lfm2(path) if kind == "lfm2" else write_random(path, kind, n_layer=4)


def held(engine: Engine) -> list[list[int]]:
    """Positions of every evicting layer, in its first head."""
    layers = range(1, 4, 2) if engine.plan.arch == "lfm2" else range(engine.plan.n_layer)
    return [engine.kept(layer, 0).tolist() for layer in layers]


def goes_on(engine: Engine) -> list[list[int]]:
    """The tokens that come next: the likeliest, and drawn with a seed."""
    found = []
    for temp in (0.0, 1.0):
        engine.set_seed(7)
        prompt = [*engine.input_ids[: engine.n_tokens].tolist(), 9, 8]
        found.append(list(islice(engine.generate(prompt, temp=temp), 6)))
    return found


@pytest.fixture(scope="module")
def tokens(folder: Path) -> list[int]:
    engine = made(write(folder, "llama"))
    found: list[int] = engine.tokenize(TEXT.encode())[:500]
    engine.close()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_gives_the_same_tokens(kind: str, folder: Path, tmp_path: Path, tokens: list[int]) -> None:
    path = write(folder, kind)
    first, second = made(path), made(path)
    first.eval(tokens)
    saved = first.save_session(tmp_path / "text", messages=[{"role": "user", "content": "é 😀"}], notes={"a": [1]})
    assert (saved.tokens, saved.rows, saved.bytes) == (500, 0, (tmp_path / "text").stat().st_size)
    assert (tmp_path / "text").stat().st_mode & 0o777 == 0o600
    loaded = second.load_session(tmp_path / "text")
    assert loaded.messages == [{"role": "user", "content": "é 😀"}] and loaded.notes == {"a": [1]}
    np.testing.assert_array_equal(logits(second), logits(first))
    assert second.n_tokens == second.report().positions == 500
    assert goes_on(second) == goes_on(first)
    first.close()
    second.close()


@pytest.mark.parametrize(("place", "kind"), [("ram", "llama"), ("file", "llama"), ("file", "lfm2")])
def test_recall_after_loading(place: str, kind: str, folder: Path, tmp_path: Path, tokens: list[int]) -> None:
    """Bit for bit, from one place of an archive to another."""
    path = write(folder, kind)
    other = "ram" if place == "file" else "file"
    first, second = made(path, evict=SMALL.with_(archive=place)), made(path, evict=SMALL.with_(archive=other))
    first.eval(tokens)
    second.eval(tokens[:300])
    saved = first.save_session(tmp_path / "text")
    assert first.report().archive is not None and saved.rows == first.report().archive.rows > 0
    second.load_session(tmp_path / "text")
    assert held(second) == held(first)
    question = None if kind == "lfm2" else QUESTION
    assert first.recall(question).cells == second.recall(question).cells > 0
    assert held(second) == held(first)
    assert goes_on(second) == goes_on(first)
    first.close()
    second.close()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    one = made(write(folder, "llama"), evict=SMALL.with_(archive="ram"))
    yield one
    one.close()


def test_archived_rows_of_another_type(folder: Path, tmp_path: Path, tokens: list[int]) -> None:
    evict = SMALL.with_(archive="file", archive_type="q8_0")
    first, second = (made(write(folder, "llama"), evict=evict) for _ in range(2))
    first.eval(tokens)
    first.save_session(tmp_path / "text")
    second.load_session(tmp_path / "text")
    first.recall(QUESTION)
    second.recall(QUESTION)
    assert goes_on(second) == goes_on(first)
    first.close()
    second.close()


def test_in_a_new_process(engine: Engine, folder: Path, tmp_path: Path, tokens: list[int]) -> None:
    engine.reset()
    engine.eval(tokens)
    engine.save_session(tmp_path / "text")
    code = (
        "import sys; from restkv_local import Engine, EvictConfig; from itertools import islice\n"
        "e = Engine(sys.argv[1], n_threads=1, n_ctx=1024, evict=EvictConfig(budget=96, reserve=160, archive='file'))\n"
        "e.load_session(sys.argv[2]); e.recall(sys.argv[3]); t = e.input_ids[:e.n_tokens].tolist() + [9, 8]\n"
        "print(list(islice(e.generate(t, temp=0.0), 6)))"
    )
    command = [sys.executable, "-c", code, str(folder / "llama.gguf"), str(tmp_path / "text"), QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    engine.recall(QUESTION)
    assert done.stdout.strip() == str(answer(engine, [*tokens, 9, 8], 6)), done.stderr


def test_other_settings(engine: Engine, folder: Path, tmp_path: Path, tokens: list[int]) -> None:
    """Each is refused in a sentence that says what to take, and the text before stays."""
    engine.reset()
    engine.eval(tokens)
    engine.save_session(tmp_path / "text")
    other = write_random(tmp_path / "other.gguf", "llama", n_layer=4, seed=9)
    model = folder / "llama.gguf"
    archive = SMALL.with_(archive="ram")
    for path, options, why in (
        (other, {"evict": archive}, "another model .*open it with that model"),
        (model, {"evict": archive.with_(budget=128)}, "saved with budget 96 .* open it with budget 96"),
        (model, {"evict": archive.with_(window=16)}, "open it with window 32"),
        (model, {"evict": archive.with_(reserve=128)}, "open it with budget and reserve of 256 together"),
        (model, {"evict": SMALL}, "open it with archive 'ram' or 'file'"),
        (model, {"evict": archive, "kv_type": "q8_0"}, "kv_type"),
        (model, {"evict": archive, "n_ctx": 256}, "a context of 501 or more"),
    ):
        one = made(path, **options)
        one.eval(tokens[:100])
        before = logits(one)
        with pytest.raises(SessionError, match=why):
            one.load_session(tmp_path / "text")
        assert one.n_tokens == 100
        np.testing.assert_array_equal(logits(one), before)
        one.close()
    roomier = made(model, n_ctx=2048, evict=archive.with_(reserve=300))
    roomier.load_session(tmp_path / "text")
    assert roomier.n_tokens == 500
    roomier.close()


def test_before_an_eviction_a_larger_budget_will_do(folder: Path, tmp_path: Path, tokens: list[int]) -> None:
    first, second = made(folder / "llama.gguf"), made(folder / "llama.gguf", evict=SMALL.with_(budget=300))
    first.eval(tokens[:200])
    first.save_session(tmp_path / "text")
    second.load_session(tmp_path / "text")
    assert goes_on(second) == goes_on(first)
    first.close()
    second.close()


def test_a_state_that_does_not_fit_gives_the_text_before_back(
    engine: Engine, folder: Path, tmp_path: Path, tokens: list[int]
) -> None:
    """Its checksums are right, so only the cache itself can tell; the rows of the archive stay too."""
    twin = made(folder / "llama.gguf", evict=SMALL.with_(archive="ram"))
    for one in (engine, twin):
        one.reset()
        one.eval(tokens)
    rows = engine.save_session(tmp_path / "text").rows
    for one in (engine, twin):
        one.recall(QUESTION)
    before, cells = logits(engine), held(engine)
    for changes, header in (
        ({"state": lambda data: data[:-100]}, {}),
        ({"state": lambda data: data[:200] + b"\xff" * 8 + data[208:]}, {}),
        ({"rows": lambda data: data[: len(data) // rows * 64]}, {"rows": 64}),
    ):
        forged(tmp_path / "text", tmp_path / "other", changes, header)
        with pytest.raises(SessionError, match="does not fit"):
            engine.load_session(tmp_path / "other")
        assert engine.n_tokens == 500 and held(engine) == cells
        np.testing.assert_array_equal(logits(engine), before)
    for one in (engine, twin):
        one.recall(QUESTION)
    assert held(engine) == held(twin)
    twin.close()


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_sessions(kind: str, folder: Path, tmp_path: Path, tokens: list[int]) -> None:
    """Damaged, or forged with right checksums: loaded, or refused in one sentence with the text as it was."""
    one = made(write(folder, kind))
    one.eval(tokens)
    one.save_session(tmp_path / "text", notes={"a": {"b": 1}})
    refusals = 0
    for seed in range(100):
        hostile(tmp_path / "text", tmp_path / "other", random.Random(seed))
        try:
            one.load_session(tmp_path / "other")
            one.eval([9, 8])
            one.load_session(tmp_path / "text")
        except SessionError as error:
            refusals += 1
            assert "\n" not in str(error) and one.n_tokens == one.report().positions == 500
    assert 50 < refusals < 100
    one.close()


def test_cancel_while_saving_keeps_the_old_session(engine: Engine, tmp_path: Path, tokens: list[int],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from restkv_local.engine import session

    engine.reset()
    engine.eval(tokens[:300])
    engine.save_session(tmp_path / "text")
    old = (tmp_path / "text").read_bytes()
    engine.eval(tokens[300:])

    def stopped(engine: Engine) -> None:
        raise Cancelled("stopped by cancel()")

    with monkeypatch.context() as patch:
        patch.setattr(session, "_go_on", stopped)
        for call in (engine.save_session, engine.load_session):
            with pytest.raises(Cancelled):
                call(tmp_path / "text")
    assert [path.name for path in tmp_path.iterdir()] == ["text"] and (tmp_path / "text").read_bytes() == old
    assert engine.n_tokens == 500


def test_sources_are_not_those_of_the_answer_before(folder: Path, tmp_path: Path, tokens: list[int]) -> None:
    engine = made(write(folder, "llama"))
    engine.eval(tokens)
    engine.save_session(tmp_path / "saved")
    engine.create_completion(tokens[:40], max_tokens=3)
    engine.sources()
    engine.load_session(tmp_path / "saved")
    assert engine.report().question is None
    with pytest.raises(ConfigError, match="there is no answer in the cache"):
        engine.sources()
    engine.close()
