"""restkv-eval turns: how each row reads and asks, runs on tiny models, and what the report says of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import models
from engines import TEMPLATE
from eval_models import Stops, evaluate, lines, tiny  # noqa: F401
from restkv_local.config import EvictConfig
from restkv_local.errors import EvictionError
from restkv_local.eval.reading import forced
from restkv_local.eval.report import html_page, markdown
from restkv_local.eval.report.turns import HEADS, turn_table
from restkv_local.eval.results import read_results
from restkv_local.eval.turns import prompts
from restkv_local.eval.turns.asking import Talk, found_share
from restkv_local.eval.turns.document import make
from restkv_local.eval.turns.prompts import FRESH, KEPT, MODES, Chat, Plain, Script
from restkv_local.eval.turns.rows import DEFAULT, WAYS

WORDS = ("turns", "--contexts", "768", "--budgets", "64", "--reserve", "128", "--samples", "1", "--questions", "3")
# Those in torch: test_turns_in_torch.py.
NATIVE = [name for name, way in WAYS.items() if not way.reference]
ARCHIVED = [name for name in NATIVE if WAYS[name].archive]


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory, native: None) -> Path:
    """A tiny model with a chat template that writes the beginning of an answer with other tokens than its history."""
    return models.write_random(tmp_path_factory.mktemp("turns") / "chatty.gguf", "llama", seed=3, template=TEMPLATE)


def load(path: Path, **evict: Any) -> Any:
    from restkv_local import Engine

    return Engine(str(path), 2048, EvictConfig(**({"budget": 64, "reserve": 128} | evict)), n_threads=1, n_batch=100)


def scripted(engine: Any, n: int = 3) -> Script:
    form = Chat(engine) if engine.chat_format != "raw" else Plain(engine)

    def count(text: str) -> int:
        return len(engine.tokenize(text.encode(), add_bos=False, special=False))

    return prompts.script(engine, form, make("facts", count, 700, n, 0, 0), MODES)


# ---- one talk -----------------------------------------------------------------------------------


class Listens:
    """In place of an engine: writes down what it is asked to do, and how it would read."""

    def __init__(self, evict: EvictConfig, *, cuts: bool = True) -> None:
        self.plan = models_plan(evict)
        self.done: list[str] = []
        self.n_tokens, self.cells, self.guide, self._cuts = 0, 100, None, cuts
        self.metadata = {"llama.block_count": "0"}

    def reset(self) -> None:
        self.n_tokens = 0
        self.done.append("reset")

    def eval(self, tokens: list[int]) -> None:
        self.n_tokens += len(tokens)
        self.done.append("answer" if len(tokens) == 1 else f"read {len(tokens)} {self.plan.prefill} for {self.guide}")

    def recall(self, tokens: list[int]) -> Any:
        self.done.append(f"recall {len(tokens)}")
        return SimpleNamespace(seconds=0.5, bytes=7, moved=3)

    def _evict(self) -> None:
        self.done.append("evict")

    def save_state(self) -> int:
        self.done.append("save")
        return self.n_tokens

    def load_state(self, state: int) -> None:
        self.n_tokens = state
        self.done.append("load")

    def read_logits(self, tokens: list[int]) -> None:
        self.done.append(f"cut at {self.n_tokens}")
        if not self._cuts:
            raise EvictionError("no")

    def report(self) -> Any:
        return SimpleNamespace(archive=SimpleNamespace(read_bytes=len(self.done)), recall_seconds=0.25, copied_cells=4,
                               decode_seconds=float(self.done.count("answer")), answer_recalled=0)  # fmt: skip

    @property
    def scores(self) -> Any:
        return {self.n_tokens - 1: np.zeros(50)}


@dataclasses.dataclass(frozen=True)
class PlanOf:
    prefill: str
    budget: int
    evicts: bool = True
    arch: str = "llama"


def models_plan(evict: EvictConfig) -> PlanOf:
    return PlanOf(evict.prefill_used, 64)


def _script() -> Script:
    """Text 0..9, questions of 4 tokens with 2 of a stem, answers of 3."""
    document = SimpleNamespace(id="d", kind="facts")

    def turn(number: int, start: list[int]) -> prompts.Turn:
        tokens = [*start, *(number * 10 + i for i in range(4))]
        answer = [40 + number, 41, 42]
        question = SimpleNamespace(text=f"q{number}", kind="facts")
        arrays = [np.array(tokens), 2, np.array(answer), ((0, 3),), np.array([1, 2])]
        return prompts.Turn(number, question, *arrays)  # type: ignore[arg-type]

    text = list(range(10))
    first = turn(1, text)
    second = turn(2, [*first.prompt.tolist(), *first.answer.tolist()])
    return Script(document, 10, {KEPT: (first, second), FRESH: (turn(1, text), turn(2, text))})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "asked", "back"),
    [
        ("stream", ["read 10 stream for q1", "save"], ["read {} stream for {}"], ["load"]),
        ("guided", ["read 10 guided for q1", "save"], ["read {} guided for {}"], ["load"]),
        ("two-pass", ["read 10 stream for q1"], ["recall {}", "read {} stream for {}"], ["cut at 10"]),
        ("per-layer", ["read 10 stream for q1"], ["read {} recall for {}"], ["cut at 10"]),
        ("recall", ["read 10 recall for q1"], ["read {} recall for {}"], ["cut at 10"]),
        ("recall-two-pass", ["read 10 recall for q1"], ["recall {}", "read {} stream for {}"], ["cut at 10"]),
        ("ceiling", ["read 10 stream for q1", "evict"], ["read {} recall for {}"], ["cut at 10"]),
        ("ceiling-two-pass", ["read 10 stream for q1", "evict"], ["recall {}", "read {} stream for {}"], ["cut at 10"]),
    ],
)
def test_what_each_row_does(name: str, text: list[str], asked: list[str], back: list[str]) -> None:
    way = WAYS[name]
    prefill = "recall" if way.question == "per layer" else "stream" if way.text == "exact" else way.text
    engine = Listens(EvictConfig(budget=64, prefill=prefill, archive="ram" if way.archive else "none"))
    talk = Talk(engine, way, _script(), again=True)
    assert engine.done == ["reset", *text]
    engine.done.clear()
    kept = [record for _, record in talk.ask_all(KEPT)]

    def question(number: int, n: int) -> list[str]:
        return [line.format(n, f"q{number}") for line in asked] + ["answer", "answer"]

    # the last token of an answer is read with the next question
    assert engine.done == question(1, 4) + question(2, 5)
    engine.done.clear()
    list(talk.ask_all(FRESH))
    assert engine.done == back + question(1, 4) + back + question(2, 4)
    assert ("recall" in kept[0]) == way.archive and "answered" not in kept[0]
    assert kept[1]["seconds"]["answer"] == 2.0, "of its own tokens"
    if way.question == "two passes":
        assert kept[0]["recall"] == {"bytes": 7, "cells": 3} and kept[0]["seconds"]["recall"] == 0.5
    elif way.archive:
        assert kept[0]["recall"] == {"bytes": 1, "cells": 4} and kept[0]["seconds"]["recall"] == 0.25


def test_a_stem_apart_is_read_as_an_answer_is() -> None:
    engine = Listens(EvictConfig(budget=64, archive="ram", prefill="stream"))
    talk = Talk(engine, WAYS["two-pass"], _script(), again=False, stem_apart=True)
    engine.done.clear()
    next(iter(talk.ask_all(KEPT)))
    assert engine.done == ["recall 2", "read 2 stream for q1", *["answer"] * 4]


def test_a_text_that_cannot_be_cut_is_read_again() -> None:
    engine = Listens(EvictConfig(budget=64, archive="ram", prefill="recall"), cuts=False)
    talk = Talk(engine, WAYS["per-layer"], _script(), again=True)
    list(talk.ask_all(KEPT))
    engine.done.clear()
    next(iter(talk.ask_all(FRESH)))
    assert engine.done[:3] == ["cut at 10", "reset", "read 10 stream for q1"]


def test_found_share_by_hand() -> None:
    held = {(1, 0): [0, 1, 2, 3], (1, 1): [3, 9], (4, 0): []}
    engine = SimpleNamespace(kept=lambda layer, head: np.array(held[layer, head], dtype=np.int32))
    assert found_share(engine, [(1, 2), (4, 1)], np.array([2, 3, 4])) == [[0.6667, 0.3333], [0.0]]


@pytest.mark.parametrize("which", ["tiny", "chatty"])
def test_the_full_cache_says_what_a_plain_reading_says(which: str, request: pytest.FixtureRequest) -> None:
    engine = load(request.getfixturevalue(which), method="full")
    try:
        found = scripted(engine)
        talk = Talk(engine, WAYS["full"], found, again=True)
        measured = {mode: [record["scores"] for _, record in talk.ask_all(mode)] for mode in (KEPT, FRESH, KEPT)}
        for mode in MODES:
            for turn, scores in zip(found.turns[mode], measured[mode], strict=True):
                engine.reset()
                engine.eval(turn.prompt.tolist())
                tokens = forced(engine, turn.answer.tolist())
                assert scores["log_prob"] == pytest.approx(sum(token.log_prob for token in tokens), abs=0.05)
                assert scores["score"] == all(token.likeliest for token in tokens) and scores["found"] == 1.0
        logs = [scores["log_prob"] for scores in measured[KEPT] + measured[FRESH][1:]]
        assert len({round(value, 3) for value in logs}) == 5, "else the test would compare the same thing"
    finally:
        engine.close()


@pytest.mark.parametrize("prefill", ["stream", "guided"])
def test_a_fresh_question_does_not_depend_on_the_one_before(tiny: Path, prefill: str) -> None:  # noqa: F811
    engine = load(tiny, prefill=prefill)
    try:
        found = scripted(engine)
        whole = [record for _, record in Talk(engine, WAYS[prefill], found, again=True).ask_all(FRESH)]
        assert engine.report().n_evictions > 0
        last = found.turns[FRESH][-1]
        # the same text, read for the same first question
        alone = Talk(engine, WAYS[prefill], found, again=True)
        record = alone._ask(last)
        assert record["scores"] == whole[-1]["scores"] and record["found"] == whole[-1]["found"]
    finally:
        engine.close()


# ---- runs ---------------------------------------------------------------------------------------


def test_every_row_measures_every_question(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    result = evaluate(
        *WORDS, "--model", tiny, "--raw", "--rows", ",".join(NATIVE), "--kinds", "facts,pairs", "--out", out, "--json"
    )
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["results"] == len(NATIVE) * 2 * 2 * 3
    records = lines(out / "turns.jsonl")
    assert {record["task"] for record in records} == {"turns kept", "turns fresh"}
    assert {record["labels"]["kind"] for record in records} == {"facts", "pairs"}
    assert [r["labels"]["turn"] for r in records][:6] == [1, 2, 3, 1, 2, 3]
    by_row = {name: [r for r in records if r["setting"]["name"] == name] for name in NATIVE}
    for name, way in ((name, WAYS[name]) for name in NATIVE):
        assert len(by_row[name]) == 12
        for record in by_row[name]:
            assert record["setting"]["prefill"] == (None if name == "full" else way.text)
            assert record["scores"]["log_prob"] < 0 and record["reference_tokens"] >= 5
            assert ("recall" in record) == way.archive
            if name == "full":
                assert record["scores"]["found"] == 1.0 and record["found"] == []
                continue
            heads = record["found"]
            assert [len(layer) for layer in heads] == [2, 2]
            assert record["scores"]["found"] == pytest.approx(np.mean(heads), abs=1e-4)
            assert record["cache"]["cells"] <= record["cache"]["budget"] + record["cache"]["reserve"]
    for name in ARCHIVED:
        assert sum(record["recall"]["bytes"] for record in by_row[name]) > 0
        # what is chosen again comes from the whole text
        assert sum(r["scores"]["found"] for r in by_row[name]) > 0
    assert any(r["scores"]["found"] < 1 for r in by_row["stream"])
    page, text = html_page(read_results([out])), markdown(read_results([out]))
    for shown in (page, text):
        assert "recall-two-pass" in shown and "read for it" in shown


def test_answers_recall_where_they_are_told_to(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    words = [*WORDS, "--model", tiny, "--raw", "--rows", "stream,recall,ceiling", "--modes", "kept"]
    asked = {}
    for every in (0, 1, 3):
        out = tmp_path / str(every)
        assert evaluate(*words, "--recall-every", every, "--out", out).exit_code == 0
        asked[every] = lines(out / "turns.jsonl")
    plain, each, some = asked.values()
    for ours, theirs in zip(each, plain, strict=True):
        name = theirs["setting"]["name"]
        archived = name in ("recall", "ceiling")
        assert ours["setting"]["name"] == (f"{name}, recall every 1" if archived else name)
        assert ours["setting"]["evict"]["recall_every"] == int(archived)
        n = ours["reference_tokens"] - 1
        assert ours.get("answered") == ({"tokens": n, "recalled": n, "layers": 2.0} if archived else None)
        assert "answered" not in theirs and (archived or ours == theirs)
    assert [r["scores"] for r in each] != [r["scores"] for r in plain] != [r["scores"] for r in some]
    for record in some:
        if "answered" in record:
            assert record["answered"]["recalled"] in (record["answered"]["tokens"] // 3 + more for more in (0, 1))


def test_with_cells_for_all_every_row_is_the_full_cache(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    words = [word if word != "64" else "2048" for word in WORDS]
    rows = [name for name in DEFAULT if name != "ceiling"]
    result = evaluate(*words, "--model", tiny, "--raw", "--rows", ",".join(rows), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    records = lines(tmp_path / "out" / "turns.jsonl")
    full = {(r["task"], r["sample"]): r["scores"] for r in records if r["setting"]["name"] == "full"}
    assert len(records) == len(rows) * len(full)
    for record in records:
        theirs = full[record["task"], record["sample"]]
        assert record["scores"]["log_prob"] == pytest.approx(theirs["log_prob"], abs=0.05)
        assert record["scores"]["found"] == 1.0


def test_a_stopped_run_goes_on_to_the_same_file(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = (*WORDS, "--model", tiny, "--raw", "--rows", "stream,recall")
    done = evaluate(*words, "--out", whole, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["new"] == 18
    stopped = evaluate(*words, "--out", parts, engine=Stops(10))
    assert stopped.exit_code == 130 and "go on with --out" in " ".join(stopped.stderr.split())
    assert 0 < len(lines(parts / "turns.jsonl")) < 18
    resumed = evaluate(*words, "--out", parts, "--resume", "--json")
    assert resumed.exit_code == 0, resumed.output
    assert lines(parts / "turns.jsonl") == lines(whole / "turns.jsonl")
    again = evaluate(*words, "--out", parts, "--resume", "--json", engine=Stops(0))
    assert again.exit_code == 0 and json.loads(again.stdout)["new"] == 0


def test_chats_are_the_default_and_base_models_are_told(tiny: Path, chatty: Path, tmp_path: Path) -> None:  # noqa: F811
    refused = evaluate(*WORDS, "--model", tiny, "--rows", "full", "--out", tmp_path / "a")
    assert refused.exit_code == 1 and "add --raw" in refused.stderr and not (tmp_path / "a").exists()
    asked = {}
    for raw in (True, False):
        words = (*WORDS, "--model", chatty, "--rows", "full", "--modes", "kept", "--out", tmp_path / str(raw))
        assert evaluate(*words, *(["--raw"] if raw else [])).exit_code == 0
        asked[raw] = lines(tmp_path / str(raw) / "turns.jsonl")
        assert {record["task"] for record in asked[raw]} == {"turns kept"}
        assert all(record["options"]["raw"] == raw for record in asked[raw])
    assert [r["scores"]["log_prob"] for r in asked[True]] != [r["scores"]["log_prob"] for r in asked[False]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kinds", "hay"], "'hay' is not one of facts"),
        (["--rows", "streams"], "'streams' is not one of full"),
        (["--modes", "new"], "'new' is not one of kept, fresh"),
        (["--questions", "0"], "--questions"),
        (["--prefill", "stream"], "No such option"),
        (["--budgets", "3"], "budget must be"),
        (["--budgets", "512MB"], "a ceiling has cells for the whole text"),
        (["--recall-every", "-1"], "--recall-every"),
        (["--methods", "h2o", "--rows", "recall"], "--method h2o"),
    ],
)
def test_bad_options_give_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = evaluate("turns", *arguments)
    assert result.exit_code in (1, 2) and message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


# ---- the report ---------------------------------------------------------------------------------


def _record(name: str, turn: int, log_prob: float, **more: Any) -> dict[str, Any]:
    full = name == "full"
    return {
        "task": "turns kept", "options": {}, "context": 2048, "seed": 0, "sample": f"facts-0-{turn}",
        "labels": {"kind": "facts", "turn": turn},
        "setting": {"name": name, "method": "full" if full else "restkv", "budget": None if full else 256,
                    "prefill": None if full else "stream", "kv_type": "f16", "evict": {}},
        "model": {"name": "m.gguf", "bytes": 1}, "cache": {"bytes": 1000, "cells": 64},
        "scores": {"score": 1.0, "log_prob": log_prob, "found": 0.5}, "reference_tokens": 5,
        "seconds": {"text": 1.0, "question": 0.2, **({"recall": 0.03} if more else {})}, **more,
    }  # fmt: skip


def test_the_table_of_turns_by_hand() -> None:
    records = [_record("full", turn, -1.0) for turn in (1, 2, 3)]
    records += [
        _record("two-pass", turn, log_prob, recall={"bytes": 2_000_000, "cells": 9})
        for turn, log_prob in ((1, -1.5), (2, -4.0), (3, -4.0))
    ]
    full, ours = [[cell.text for cell in line] for line in turn_table(records)]
    assert len(full) == len(ours) == len(HEADS)
    assert full[:7] == ["facts", "2,048", "full", "-", "3", "-1.000", "-"] and full[-3:] == ["-", "-", "200 ms"]
    assert ours[2:9] == ["two-pass", "256", "3", "-1.500", "-0.500", "-4.000 (-4.000 to -4.000)",
                         "-3.000 (-3.000 to -3.000)"]  # fmt: skip
    # (-1.5 - 4 - 4) / 3 questions / 5 tokens
    assert ours[9:] == ["-0.633", "100%", "50%", "30 ms", "2.0 MB", "200 ms"]
    text = markdown(records)
    assert "### turns kept" in text and f"| {' | '.join(HEADS)} |" in text and "all rows" in text
