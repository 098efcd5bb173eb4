"""InfiniteBench: generated tasks hold what is asked and can be solved; local ones are read, cut and scored."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import task_data as data
from restkv_local.errors import ConfigError
from restkv_local.eval import fit, infinitebench
from restkv_local.eval.infinitebench import generated, local
from restkv_local.eval.sample import Sample, Task

SYNTHETIC = [task.name for task in generated.TASKS]
LOCAL = [task.name for task in local.TASKS]


def task(name: str, folder: Path | None = None) -> Task:
    return next(one for one in infinitebench.tasks(folder) if one.name == name)


def draw(name: str, length: int = 2000, n: int = 6, seed: int = 0) -> list[Sample]:
    return list(task(name).samples(data.fake_count, length, n, seed))


def test_twelve_tasks_with_official_lengths() -> None:
    assert [one.name for one in infinitebench.tasks()] == list(infinitebench.NAMES) == SYNTHETIC + LOCAL
    assert {about.name: about.max_tokens for about in infinitebench.ABOUT} == {
        "passkey": 6, "number_string": 12, "kv_retrieval": 50, "longbook_sum_eng": 1200, "longbook_choice_eng": 40,
        "longbook_qa_eng": 40, "longbook_qa_chn": 40, "longdialogue_qa_eng": 40, "math_find": 3, "math_calc": 30000,
        "code_run": 5, "code_debug": 5,
    }  # fmt: skip


@pytest.mark.parametrize("length", [900, 6000])
@pytest.mark.parametrize("name", SYNTHETIC)
def test_generated_samples_fill_and_are_deterministic(name: str, length: int) -> None:
    samples = draw(name, length)
    assert samples == draw(name, length) and samples != draw(name, length, seed=1)
    sizes = [fit.size(data.fake_count, sample) for sample in samples]
    assert all(0.95 * length <= size <= length for size in sizes), sizes
    assert len({sample.id for sample in samples}) == len(samples)
    assert all(task(name).score(sample, f" {sample.references[0]}") == 1 for sample in samples)
    assert all(task(name).score(sample, "") == 0 for sample in samples)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_real_tokenizer(name: str, native: None, smollm2: Path) -> None:
    import llama_cpp

    model = llama_cpp.Llama(str(smollm2), vocab_only=True, verbose=False)

    def count(text: str) -> int:
        return len(model.tokenize(text.encode(), add_bos=False, special=False))

    sizes = [fit.size(count, sample) for sample in task(name).samples(count, 1500, 3, 0)]
    assert all(1400 <= size <= 1500 for size in sizes), sizes


@pytest.mark.parametrize(("name", "pattern"), [("passkey", r"\d{5}"), ("number_string", r"\d{10}")])
def test_keys_stand_at_every_depth(name: str, pattern: str) -> None:
    samples = draw(name, n=5)
    assert [sample.labels["depth"] for sample in samples] == [0, 0.25, 0.5, 0.75, 1]
    for sample in samples:
        key = sample.references[0]
        assert re.fullmatch(pattern, key) and sample.context.count(key) == 2
        lines = sample.context.splitlines()[2:-1]
        place = next(i for i, line in enumerate(lines) if key in line)
        assert place == pytest.approx(sample.labels["depth"] * (len(lines) - 1), abs=1)
    if name == "number_string":
        assert all(len(re.findall(r"(\d)(?=\1)", sample.references[0])) >= 5 for sample in samples)


def test_key_of_a_json_object() -> None:
    for sample in draw("kv_retrieval"):
        pairs = json.loads(sample.context.split("\n\n")[1])
        key = json.loads(sample.question.removeprefix("Key: "))
        assert pairs[key] == sample.references[0]
        assert list(pairs).index(key) == pytest.approx(sample.labels["depth"] * (len(pairs) - 1), abs=1)


def test_number_of_a_list() -> None:
    seen = set()
    for sample in draw("math_find", n=40):
        numbers = json.loads(sample.context.split("\n\n")[1])
        name = str(sample.labels["asked"])
        seen.add(name)
        assert f"the {name} number" in sample.context and f"The {name} number" in sample.answer_prefix
        assert len(numbers) % 2 == 1 and 0 <= min(numbers) and max(numbers) <= 99
        order = sorted(set(numbers))
        right = {
            "largest": order[-1], "second largest": order[-2], "third largest": order[-3], "smallest": order[0],
            "second smallest": order[1], "third smallest": order[2], "median": sorted(numbers)[len(numbers) // 2],
        }  # fmt: skip
        assert sample.references == (str(right[name]),)
    assert len(seen) == 7


def test_value_of_a_call() -> None:
    calls = set()
    for sample in draw("code_run", n=12):
        names: dict[str, Any] = {}
        exec(compile(sample.context.split("\n\n", 1)[1], "code", "exec"), names)  # our own code
        found = re.search(r"func_(\d+)\((-?\d+)\)", sample.question)
        assert found and str(names[f"func_{found[1]}"](int(found[2]))) == sample.references[0]
        calls.add(sample.labels["calls"])
    assert len(calls) >= 3


# ---- local files -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCAL)
def test_local_tasks_render_and_are_cut(tmp_path: Path, name: str) -> None:
    data.write_jsonl(tmp_path / f"{name}.jsonl", [data.infinite_row()])
    [whole] = task(name, tmp_path).samples(data.fake_count, 3000, 5, 0)
    assert "Anna is the captain." in whole.context and whole.labels["cut"] == "no"
    asks = name in ("longbook_qa_eng", "longbook_qa_chn", "longbook_choice_eng")
    assert ("Who is the captain?" in whole.question) is asks
    assert "{" not in whole.context + whole.question and "{" not in whole.answer_prefix
    if name in ("longbook_choice_eng", "code_debug"):
        assert "A. Anna\nB. Berta\nC. Clara\nD. Dora" in whole.question and whole.references == ("Anna", "A")
    [cut] = task(name, tmp_path).samples(data.fake_count, 300, 5, 0)
    assert cut.labels["cut"] == "middle" and cut.question == whole.question
    assert 285 <= fit.size(data.fake_count, cut) <= 300
    assert "Anna is the captain." in cut.context


def test_local_answers_of_every_form(tmp_path: Path) -> None:
    for answer, references in (([[3, 10]], ("3", "10")), ("Anna", ("Anna",)), ([4], ("4",)), (2.5, ("2.5",))):
        data.write_jsonl(tmp_path / "math_calc.jsonl", [data.infinite_row(answer=answer)])
        assert task("math_calc", tmp_path).samples(data.fake_count, 3000, 1, 0)[0].references == references


def test_local_scores() -> None:
    def score(name: str, answer: str, *references: str) -> float:
        return task(name).score(Sample("", "", "", references, 1), answer)

    assert score("longbook_qa_eng", "the Anna", "Berta", "Anna") == 1
    assert score("longbook_qa_chn", "北京。", "北京") == 1
    assert score("longbook_sum_eng", "a b", "a b c d") == pytest.approx(2 / 3)
    assert score("longbook_choice_eng", " B", "Berta", "B") == 1
    assert score("longdialogue_qa_eng", "Anna", "ANNA") == 1
    assert score("math_calc", "[1, 2, 4]", "1", "2", "3", "4") == 0.5
    assert score("code_debug", "A. run", "run", "A") == 1
    assert all(score(name, "", "Anna", "A") == 0 for name in LOCAL)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_no_room_is_one_sentence(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^infinitebench {name} needs at least \d+ tokens; 20 are given$"):
        draw(name, 20)
