"""restkv-bench needle: prompts, log-probabilities, shared beginnings, and the figures of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from restkv_local.cli.bench import main as bench
from restkv_local.config import EvictConfig
from restkv_local.errors import ConfigError, RestkvError
from restkv_local.eval import needle
from restkv_local.eval.prompt import shared_length
from restkv_local.eval.stats import student

N_BATCH = 64
N_VOCAB = 256
# What the engine below gives to a digit that it can read in its text.
KNOWN = 0.9


class Reads:
    """An engine whose tokens are bytes. It knows the key where the text it still holds has it: all of it (full), what
    the guide asks for (guided), or the last `budget` tokens (stream)."""

    chat_format = "plain"
    n_batch = N_BATCH
    n_threads = n_threads_batch = 1
    made: list[Reads] = []

    def __init__(self, model: str | None, n_ctx: int, evict: EvictConfig, **options: Any) -> None:
        self.n_ctx, self.evict, self.options = n_ctx, evict, options
        self.guide: str | None = None
        self.on_progress: Callable[[int, int], None] | None = None
        self.held: list[int] = []
        self.n_read = 0
        self.closed = False
        self._chat_handlers: dict[str, Any] = {"plain": self._chat}
        self.chat_handler = None
        Reads.made.append(self)

    @staticmethod
    def _chat(*, llama: Any, messages: list[dict[str, str]]) -> Any:
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"
        return llama.create_completion(prompt=llama.tokenize(text.encode(), add_bos=False, special=True), stop=[])

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        return ([0] if add_bos else []) + list(text)

    @property
    def n_tokens(self) -> int:
        return len(self.held)

    def reset(self) -> None:
        self.held = []

    def save_state(self) -> list[int]:
        return list(self.held)

    def load_state(self, state: list[int]) -> None:
        self.held = list(state)

    def eval(self, tokens: list[int]) -> None:
        assert len(self.held) + len(tokens) <= self.n_ctx
        self.n_read += len(tokens)
        for first in range(0, len(tokens), N_BATCH):
            self.held += tokens[first : first + N_BATCH]
            if self.on_progress is not None and len(tokens) > 1:
                self.on_progress(min(first + N_BATCH, len(tokens)), len(tokens))

    @property
    def scores(self) -> dict[int, Any]:
        text = bytes(self.held).decode()
        begun = text.rpartition(needle.STEM)[2]
        budget = int(self.evict.budget)
        seen = text if self.evict.method == "full" or self.evict.prefill == "guided" else text[-budget:]
        found = re.search(r"pass key is (\d{5})\.", seen)
        p = np.full(N_VOCAB, 1 / N_VOCAB)
        if found and found[1].startswith(begun):
            p[:] = (1 - KNOWN) / (N_VOCAB - 1)
            p[ord(found[1][len(begun)])] = KNOWN
        return {self.n_tokens - 1: np.log(p) + 7}  # logits are log-probabilities up to a constant

    def report(self) -> Any:
        return SimpleNamespace(
            model="reads", budget=self.evict.budget, capacity=self.evict.budget, backend="fake", n_evictions=1
        )

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No engine of another test; no bindings, which need the library, where nothing real runs."""
    if "native" not in request.fixturenames:
        monkeypatch.setattr(needle, "versions", lambda: {})
    Reads.made.clear()
    yield
    Reads.made.clear()


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(bench.main, ["needle", *arguments], obj={"engine": Reads})


def _settings(context: int, depths: int) -> needle.NeedleSettings:
    return needle.NeedleSettings(context, depths, (256,), ("restkv",), ("stream",), 0)


def _engine(n_ctx: int = 4096, **evict: Any) -> Reads:
    return Reads(None, n_ctx, EvictConfig(budget=256, **evict))


def test_prompts_fill_the_context_and_differ_in_the_place_of_the_key() -> None:
    cases = needle.make_cases(_engine(), _settings(4096, 4))
    assert [case.depth for case in cases] == [0.125, 0.375, 0.625, 0.875]
    assert len({case.key for case in cases}) == 4
    for case in cases:
        text = bytes(case.prompt).decode()
        assert 4096 - 200 < len(case.prompt) + len(case.answer) <= 4096
        assert bytes(case.answer).decode() == case.key
        assert text.endswith(f"{needle.QUESTION}<assistant>{needle.STEM}")
        place = text.index(needle.NEEDLE.format(key=case.key)) / len(text)
        assert place == pytest.approx(case.depth, abs=0.06)
    assert cases == needle.make_cases(_engine(), _settings(4096, 4))
    with pytest.raises(ConfigError, match="raise --context"):
        needle.make_cases(_engine(), _settings(300, 4))


def test_log_probability_is_of_the_whole_answer() -> None:
    engine = _engine(method="full")
    engine.eval(list(f"{needle.NEEDLE.format(key=12345)} {needle.STEM}".encode()))
    assert needle.answer_log_prob(engine, list(b"12345")) == pytest.approx(5 * np.log(KNOWN))
    engine.reset()
    engine.eval(list(f"{needle.NEEDLE.format(key=12345)} {needle.STEM}".encode()))
    wrong = 4 * np.log(1 / N_VOCAB) + np.log((1 - KNOWN) / (N_VOCAB - 1))
    assert needle.answer_log_prob(engine, list(b"72345")) == pytest.approx(wrong)


def test_a_shared_beginning_is_read_once_and_changes_nothing() -> None:
    cases = needle.make_cases(_engine(), _settings(4096, 4))
    engine = _engine(method="full")
    reader = needle.Reader(engine)
    for i, case in enumerate(cases):
        following = cases[i + 1].prompt if i + 1 < len(cases) else []
        reader.read(case.prompt, shared_length(case.prompt, following))
        assert engine.held == case.prompt
    total = sum(len(case.prompt) for case in cases)
    assert engine.n_read < 0.75 * total
    again = _engine(method="full")
    reader = needle.Reader(again)
    for case in cases:
        reader.read(case.prompt, shared=0)
        assert again.held == case.prompt
    assert again.n_read == total


def test_interval_over_depths() -> None:
    row = needle.compare([-1.0, -3.0, -2.0], [-1.0, -1.0, -1.0])
    assert (row["mean"], row["difference"]) == (-2.0, -1.0)
    # differences 0, -2, -1: deviation 1; t of 2 degrees of freedom is 4.3027
    assert row["difference_max"] == pytest.approx(-1 + 4.3027 / 3**0.5, abs=1e-3)
    assert row["difference_min"] == pytest.approx(-1 - 4.3027 / 3**0.5, abs=1e-3)
    assert needle.compare([-1.0], [-2.0])["difference_min"] is None
    assert needle.compare([-1.0], None)["difference"] is None


@pytest.mark.parametrize(("freedom", "point"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (99, 1.9842)])
def test_points_of_students_t(freedom: int, point: float) -> None:
    assert student(freedom) == pytest.approx(point, abs=0.01)


def test_command_compares_every_combination_with_the_full_cache(tmp_path: Path) -> None:
    file = tmp_path / "needle.json"
    result = _run(
        "--context", "4096", "--depths", "4", "--budget", "256", "--budget", "512", "--methods", "restkv,snapkv",
        "--prefill", "stream", "--prefill", "guided,stream", "--seed", "5", "--json", str(file),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert set(found) == {"rows", "device", "versions", "settings", "date"}
    rows = found["rows"]
    wanted = [(m, p, b) for b in (256, 512) for m in ("restkv", "snapkv") for p in ("stream", "guided")]
    assert [(row["method"], row["prefill"], row["budget"]) for row in rows[1:]] == wanted
    assert rows[0]["method"] == "full" and rows[0]["difference"] is None
    known = pytest.approx([5 * np.log(KNOWN)] * 4)
    for row in rows:
        if row["prefill"] == "stream":
            assert row["log_probs"][0] == pytest.approx(5 * np.log(1 / N_VOCAB))
            assert row["difference"] < -1 and row["difference"] == pytest.approx(row["mean"] - rows[0]["mean"])
        else:
            assert row["log_probs"] == known
    assert found["settings"]["question"] == needle.QUESTION and len(found["settings"]["keys"]) == 4
    assert all(engine.closed for engine in Reads.made)
    assert all(engine.guide == needle.QUESTION and engine.options["seed"] == 5 for engine in Reads.made)
    assert result.stdout == "" and "95 % interval" in result.stderr


def test_reserves_and_allocations_have_rows_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "needle.json"
    lists = ["--reserve", "256", "--reserve", "512", "--allocations", "uniform,ada", "--prefill", "guided"]
    result = _run("--context", "2048", "--depths", "2", *lists, "--json", str(file))
    assert result.exit_code == 0, result.output
    asked = [(engine.evict.allocation, engine.evict.reserve) for engine in Reads.made[1:]]
    assert asked == [("uniform", 256), ("uniform", 512), ("ada", 256), ("ada", 512)]
    rows = json.loads(file.read_text())["rows"]
    assert [row["allocation"] for row in rows] == [None, "uniform", "uniform", "ada", "ada"]
    assert "restkv:allocation=ada" in result.stderr and "reserve 512" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--main-gpu 1", {"split_mode": 0, "main_gpu": 1}),
        ("--tensor-split 3,1", {"tensor_split": [3.0, 1.0]}),
        ("", {}),
    ],
)
def test_gpus_reach_the_engines(arguments: str, expected: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "needle.json"
    words = ["--context", "2048", "--depths", "2", "--gpu-layers", "9", *arguments.split(), "--json", str(file)]
    assert _run(*words).exit_code == 0
    common = {"kv_type": "f16", "n_threads": None, "n_gpu_layers": 9, "seed": 0}
    assert Reads.made and all(engine.options == {**common, **expected} for engine in Reads.made)
    settings = json.loads(file.read_text())["settings"]
    assert (settings["main_gpu"], settings["tensor_split"]) == (
        expected.get("main_gpu"), expected.get("tensor_split")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "restkv,best"], "'best' is not one of"),
        (["--methods", "full"], "'full' is not one of"),
        (["--prefill", "fast"], "'fast' is not one of"),
        (["--budget", "tiny"], "is not a size"),
        (["--budget", "3"], "budget must be"),
        (["--context", "200"], "raise --context"),
        (["--depths", "0"], "--depths"),
        (["--reserve", "0"], "--reserve"),
        (["--main-gpu", "0", "--tensor-split", "1,1"], "give one"),
        (["--tensor-split", "1,x"], "is not a list of shares such as 3,1"),
        (["--allocations", "fair"], "'fair' is not one of"),
        (["--json", "/nowhere/at/all.json"], "does not exist"),
    ],
)
def test_bad_options_give_one_line(arguments: list[str], message: str) -> None:
    result = _run(*arguments)
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert message in result.stderr
    assert all(engine.closed for engine in Reads.made)


def test_a_stopped_run_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Reads, tokens: list[int]) -> None:
        raise RestkvError("stopped here")

    class Breaks(Reads):
        def __init__(self, model: str | None, n_ctx: int, evict: EvictConfig, **options: Any) -> None:
            super().__init__(model, n_ctx, evict, **options)
            if evict.prefill == "guided":
                monkeypatch.setattr(Breaks, "eval", fails)

    file = tmp_path / "needle.json"
    arguments = ["needle", "--context", "2048", "--depths", "2", "--json", str(file)]
    result = CliRunner().invoke(bench.main, arguments, obj={"engine": Breaks})
    assert result.exit_code == 1 and "stopped here" in result.stderr
    assert [row["prefill"] for row in json.loads(file.read_text())["rows"]] == [None, "stream"]


# ---- the embedded model ----


@pytest.mark.usefixtures("native")
def test_real_guided_run_keeps_the_key_and_equals_prompts_read_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "needle.json"
    arguments = "--context 768 --budget 128 --reserve 256 --depths 2 --prefill guided --threads 2 --json".split()
    result = CliRunner().invoke(bench.main, ["needle", *arguments, str(file)])
    assert result.exit_code == 0, result.output
    full, guided = json.loads(file.read_text())["rows"]
    assert (full["evictions"], guided["capacity"]) == (0, 384)
    assert guided["evictions"] == 2
    assert full["mean"] > -1 and guided["mean"] > -5  # five digits at random are -11.5

    from restkv_local import Engine

    engine = Engine(n_ctx=768, evict=EvictConfig(budget=128, reserve=256, prefill="guided"), n_threads=2, seed=0)
    try:
        engine.guide = needle.QUESTION
        for case, expected in zip(needle.make_cases(engine, _settings(768, 2)), guided["log_probs"], strict=True):
            engine.reset()
            engine.eval(case.prompt)
            assert needle.answer_log_prob(engine, case.answer) == pytest.approx(expected, abs=1e-4)
    finally:
        engine.close()
