"""Everything public of an engine: after close() it says that it is closed, inside a callback it looks or is refused.

The names are found by walking over the classes, so one that a newer llama_cpp adds is tested the day it comes.
"""

from __future__ import annotations

import ctypes
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import write_random
from restkv_local.config import EvictConfig
from restkv_local.engine.guard import LOOKS
from restkv_local.errors import BusyError, LibraryError, RestkvError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

EVICT = EvictConfig(budget=64, reserve=64)
TEXT = [3 + byte for byte in b"The keeper writes the weather into a blue book. " * 4]
# Arguments by the names of parameters without a default.
ARGUMENTS: dict[str, Any] = {
    "text": b"blue book",
    "tokens": [80, 81],
    "prompt": [80, 81],
    "input": "blue",
    "messages": [{"role": "user", "content": "Hello"}],
    "layer": 0,
    "head": 0,
    "state": None,
    "seed": 1,
    "path": "/no/folder/text.session",
    "cache": None,
    "token": 80,
    "top": 1,
}


def public_names() -> list[str]:
    names = [name for name in dir(Engine) if not name.startswith("_")]
    return [name for name in [*names, "__call__"] if not isinstance(member(name), (staticmethod, classmethod))]


def member(name: str) -> Any:
    return inspect.getattr_static(Engine, name)


def is_look(name: str) -> bool:
    return name in LOOKS


def use(engine: Any, name: str) -> Any:
    """Use a method with plausible arguments, generators to their end, or read a property."""
    if isinstance(member(name), property):
        return getattr(engine, name)
    if not callable(member(name)):
        return None  # a plain value of the class
    needed = [
        p.name
        for p in inspect.signature(getattr(engine, name)).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    arguments = {p: ARGUMENTS[p] for p in needed}
    if name == "create_chat_completion_openai_v1":
        arguments = {"messages": ARGUMENTS["messages"]}
    result = getattr(engine, name)(**arguments)
    return list(islice(result, 2)) if inspect.isgenerator(result) else result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(tmp_path_factory.mktemp("guard") / "model.gguf", "llama")


@pytest.fixture(scope="module")
def shared(model: Path) -> Iterator[Engine]:
    made = Engine(model, n_ctx=512, evict=EVICT, n_threads=1)
    yield made
    made.close()


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    shared.reset()
    yield shared
    shared.on_progress = shared.on_evict = shared.on_notice = None


def test_the_walk_finds_what_it_should() -> None:
    names = public_names()
    assert {"eval", "reset", "scores", "n_ctx", "embed", "create_chat_completion", "ctx", "__call__"} <= set(names)
    assert LOOKS <= set(names), "no name of the guard is out of date"


def test_a_closed_engine_says_so_whatever_is_asked(model: Path) -> None:
    """In a process of its own: what is not guarded crashes it."""
    code = (
        "import sys\n"
        "sys.path += sys.argv[2:]\n"
        "import test_guard as t\n"
        "from restkv_local import Engine, RestkvError\n"
        "e = Engine(sys.argv[1], n_ctx=512, evict=t.EVICT, n_threads=1)\n"
        "e.eval(t.TEXT)\n"
        "e.close()\n"
        "for name in t.public_names():\n"
        "    print(name, end=' ', flush=True)\n"
        "    try:\n"
        "        t.use(e, name)\n"
        "        print('-', flush=True)\n"
        "    except RestkvError as error:\n"
        "        print(error, flush=True)\n"
    )
    folders = [str(Path(__file__).parent), str(Path(write_random.__code__.co_filename).parent)]
    command = [sys.executable, "-c", code, str(model), *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0, f"it ended at {done.stdout.splitlines()[-1:]}: {done.stderr}"
    free = {name for name, text in said.items() if text == "-"}
    plain = {name for name in public_names() if not callable(member(name)) and not isinstance(member(name), property)}
    assert free - plain == {"cancel", "close", "working"}
    assert {text for name, text in said.items() if name not in free} == {"this engine is closed; make a new one"}
    assert set(said) == set(public_names())


def test_objects_of_a_closed_engine_say_so(model: Path) -> None:
    made = Engine(model, n_ctx=512, evict=EVICT, n_threads=1)
    tokenizer, inner, context = made.tokenizer(), made._model, made._ctx
    made.close()
    uses: list[Callable[[], Any]] = [
        lambda: tokenizer.tokenize(b"blue"),
        lambda: tokenizer.detokenize([80]),
        lambda: made.tokenizer_.tokenize(b"blue"),
        lambda: inner.n_vocab(),
        lambda: inner.desc(),
        lambda: context.n_ctx(),
        lambda: context.kv_cache_seq_rm(-1, 0, -1),
    ]
    for one in uses:
        with pytest.raises(RestkvError, match="closed"):
            one()


class Walk:
    """A callback that tries everything public once, and what came of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.found: dict[str, BaseException | None] = {}

    def __call__(self, *args: Any) -> Any:
        # a notice comes when the text has been forgotten, all others when there is one
        if not self.found and (self.engine.n_tokens or self.engine.on_notice is self):
            for name in public_names():
                if name == "cancel":
                    continue
                self.found[name] = None
                try:
                    use(self.engine, name)
                except BaseException as error:
                    self.found[name] = error
        return args[1] if len(args) == 2 else False  # logits as they were; no stop

    def check(self) -> None:
        assert set(self.found) == set(public_names()) - {"cancel"}
        for name, error in self.found.items():
            if is_look(name):
                assert error is None, (name, error)
            elif callable(member(name)) or isinstance(member(name), property):
                assert isinstance(error, BusyError), (name, error)
                assert name in str(error) or name == "create_chat_completion_openai_v1"


def given_by(kind: str, engine: Engine, walk: Walk) -> dict[str, Any]:
    """Let a callback of a kind be the walk; options of generate."""
    if kind == "stopping_criteria":
        return {kind: lambda ids, logits: bool(walk())}
    if kind == "logits_processor":
        return {kind: [walk]}
    setattr(engine, kind, walk)
    return {}


@pytest.mark.parametrize("kind", ["on_progress", "on_evict", "on_notice", "logits_processor", "stopping_criteria"])
def test_a_callback_looks_and_does_not_work(engine: Engine, kind: str) -> None:
    def run(**options: Any) -> tuple[list[int], Any]:
        engine.reset()
        engine.eval(TEXT[:160])
        # leaves the text before the eviction, which a notice says
        said = list(islice(engine.generate([*TEXT[:50], *TEXT[100:190]], temp=0.0, **options), 4))
        return said, np.array(engine.scores[-1, :])

    said, logits = run()
    walk = Walk(engine)
    again, same = run(**given_by(kind, engine, walk))
    walk.check()
    assert again == said
    np.testing.assert_array_equal(same, logits)


def test_a_callback_may_cancel_and_report(engine: Engine) -> None:
    from restkv_local import Cancelled

    def stop(done: int, total: int) -> None:
        if done:
            assert engine.report().positions == engine.n_tokens == done
            engine.cancel()

    engine.on_progress = stop
    with pytest.raises(Cancelled):
        engine.eval(TEXT)


def test_a_stream_made_before_is_not_read_inside_a_callback(engine: Engine) -> None:
    stream = engine.generate(TEXT[:20], temp=0.0)
    errors: list[BaseException] = []

    def read(done: int, total: int) -> None:
        try:
            next(stream)
        except BaseException as error:
            errors.append(error)

    engine.on_progress = read
    engine.eval(TEXT[:40])
    assert errors and all(isinstance(error, (BusyError, StopIteration)) for error in errors)
    assert isinstance(errors[0], BusyError)
    engine.on_progress = None
    engine.eval(TEXT[:10])


def test_other_engines_work_inside_a_callback(engine: Engine, model: Path) -> None:
    other = Engine(model, n_ctx=512, evict=EVICT, n_threads=1)
    engine.on_evict = lambda eviction: other.eval(TEXT[:20])
    engine.eval(TEXT)
    assert other.n_tokens >= 20
    other.close()


def test_state_saved_in_a_callback_is_that_of_the_chunk(engine: Engine) -> None:
    states: list[Any] = []
    engine.on_progress = lambda done, total: states.append(engine.save_state()) if done == 128 else None
    engine.eval(TEXT[:190])
    engine.on_progress = None
    after = np.array(engine.scores[-1, :])
    assert [state.n_tokens for state in states] == [128]
    engine.load_state(states[0])
    engine.eval(TEXT[128:190])
    np.testing.assert_array_equal(np.array(engine.scores[-1, :]), after)


def test_pointers_are_not_handed_out_after_close(model: Path) -> None:
    made = Engine(model, n_ctx=512, evict=EVICT, n_threads=1)
    assert isinstance(made.ctx, (int, ctypes.c_void_p)) and made.model
    made.close()
    for name in ("ctx", "model"):
        with pytest.raises(RestkvError, match="closed"):
            getattr(made, name)
