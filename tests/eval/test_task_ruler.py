"""RULER's tasks: what a sample holds, that it fits, that it is the same everywhere."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import task_data as data
from restkv_local.errors import ConfigError
from restkv_local.eval import fit, ruler
from restkv_local.eval.sample import CountTokens, Sample, Task

GENERATED = [name for name in ruler.NAMES if not name.startswith("qa_")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two question files."""
    path = tmp_path_factory.mktemp("ruler")
    (path / "squad.json").write_text(json.dumps(data.squad()))
    (path / "hotpotqa.json").write_text(json.dumps(data.hotpotqa()))
    return path


@pytest.fixture(scope="module")
def real_count(native: None, smollm2: Path) -> CountTokens:
    """The embedded model's tokenizer."""
    import llama_cpp

    model = llama_cpp.Llama(str(smollm2), vocab_only=True, verbose=False)
    return lambda text: len(model.tokenize(text.encode(), add_bos=False, special=False))


def task(name: str, folder: Path | None = None) -> Task:
    return next(one for one in ruler.tasks(folder) if one.name == name)


def one(name: str, length: int = 2500, folder: Path | None = None, index: int = 0) -> Sample:
    return task(name, folder).samples(data.fake_count, length, index + 1, 0)[index]


def test_names_and_tasks_agree(folder: Path) -> None:
    assert [made.name for made in ruler.tasks(folder)] == list(ruler.NAMES)
    assert len(set(ruler.NAMES)) == 13
    for made, about in zip(ruler.tasks(folder), ruler.ABOUT, strict=True):
        sample = made.samples(data.fake_count, 2500, 1, 0)[0]
        assert sample.max_tokens == about.max_tokens and sample.chat


@pytest.mark.parametrize("length", [1200, 3000, 9000])
@pytest.mark.parametrize("name", GENERATED)
def test_samples_fill_the_length_and_never_more(name: str, length: int) -> None:
    count = data.Counter()
    samples = task(name).samples(count, length, 4, 7)
    sizes = [fit.size(data.fake_count, sample) for sample in samples]
    assert all(0.95 * length <= size <= length for size in sizes), sizes
    assert len({sample.id for sample in samples}) == 4
    # A few counts of about the whole for each sample, and not one for every line.
    assert count.tokens < 4 * 8 * length


@pytest.mark.parametrize("name", ruler.NAMES)
def test_real_tokenizer(name: str, folder: Path, real_count: CountTokens) -> None:
    for sample in task(name, folder).samples(real_count, 2000, 2, 1):
        size = fit.size(real_count, sample)
        assert size <= 2000
        assert size >= 1900 or name.startswith("qa_"), size  # the small files end before


@pytest.mark.parametrize("name", ruler.NAMES)
def test_deterministic_by_seed(name: str, folder: Path) -> None:
    first, again, other = (task(name, folder).samples(data.fake_count, 1500, 3, seed) for seed in (3, 3, 4))
    assert first == again
    assert [sample.context for sample in first] != [sample.context for sample in other]
    more = task(name, folder).samples(data.fake_count, 1500, 5, 3)
    assert name.startswith("qa_") or list(more[:3]) == list(first)  # more samples change none that are there


def test_the_same_on_every_platform() -> None:
    """Recorded, so that another Python or system that draws otherwise is noticed."""
    texts = [sample.context + sample.question for name in GENERATED for sample in [one(name, 1500)]]
    digest = hashlib.sha256("\x00".join(texts).encode()).hexdigest()
    assert digest == "5c7c67fa6c1246d8f65d177999e5605ea1896bb1d966f81bbdf851973f13d876"


@pytest.mark.parametrize("name", [name for name in GENERATED if name.startswith("niah")])
def test_needles_are_hidden_and_asked_for(name: str) -> None:
    sample = one(name)
    text = sample.context
    assert all(text.count(value) == 1 for value in sample.references)
    asked = re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+", sample.question)
    assert len(asked) == (4 if name == "niah_multiquery" else 1)
    assert len(sample.references) == (4 if name in ("niah_multiquery", "niah_multivalue") else 1)
    for key in asked:
        needles = re.findall(rf"One of the special magic \w+ for {key} is: (\S+)\.", text)
        assert set(needles) <= set(sample.references) and needles
    assert all(key in sample.answer_prefix for key in asked)
    kind = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}" if name.endswith("_3") else r"\d{7}"
    assert all(re.fullmatch(kind, value) for value in sample.references)
    assert sample.labels["needles"] == text.count("One of the special magic") or sample.labels["haystack"] == "needles"
    assert text.count("One of the special magic") >= sample.labels["needles"]


def test_haystacks() -> None:
    lines = one("niah_single_1").context.splitlines()[1:]
    assert Counter(lines).most_common(1)[0][1] == len(lines) - 1
    lines = one("niah_multikey_2").context.splitlines()[1:]
    assert all(line.startswith("One of the special magic numbers for ") for line in lines) and len(lines) > 50
    assert one("niah_single_2").labels["haystack"] == "built-in prose"


def test_essay_file_is_used_and_named(tmp_path: Path) -> None:
    (tmp_path / "essay.txt").write_text("Writing is thinking.\nDo it well! Why not?", encoding="utf-8")
    sample = next(t for t in ruler.tasks(tmp_path) if t.name == "niah_single_3").samples(data.fake_count, 900, 1, 0)[0]
    assert sample.labels["haystack"] == "essay file"
    assert sample.context.count("Writing is thinking. Do it well! Why not? ") > 10  # repeated where it ends
    assert 850 < fit.size(data.fake_count, sample) <= 900


def test_one_or_many_in_words() -> None:
    single, many = one("niah_single_1"), one("niah_multivalue")
    assert single.context.startswith("A special magic number stands") and single.answer_prefix.endswith(" is ")
    assert "What is the special magic number for" in single.question
    assert many.context.startswith("Some special magic numbers stand") and many.answer_prefix.endswith(" are ")
    assert ", and " in one("niah_multiquery").question


def test_needles_spread_over_depths() -> None:
    samples = task("niah_single_1").samples(data.fake_count, 1500, 40, 0)
    depths = [sample.context.index(sample.references[0]) / len(sample.context) for sample in samples]
    assert min(depths) < 0.2 and max(depths) > 0.8 and 0.35 < sum(depths) / 40 < 0.65


def test_variables_form_a_chain_to_the_value() -> None:
    sample = one("vt")
    example, _, text = sample.context.partition("\n\nA chain")
    values = dict(re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", text))
    asked = re.findall(r"\d{5}", sample.question)
    assert len(values) == len(sample.references) == 5 and len(asked) == 1

    def value(name: str) -> str:
        return value(values[name]) if values[name] in values else values[name]

    assert {name for name in values if value(name) == asked[0]} == set(sample.references)
    shown = re.findall(r"VAR ([A-Z]{3}) =", example)
    assert example.endswith(" ".join(shown)) and len(shown) == 5


@pytest.mark.parametrize(("length", "often", "seldom"), [(2500, 6, 1), (6000, 30, 3), (20000, 30, 3)])
def test_common_words_are_the_most_common(length: int, often: int, seldom: int) -> None:
    sample = one("cwe", length)
    words = re.findall(r"\d+\. (\w+)", sample.context.rsplit("those in mind.", 1)[1])
    counts = Counter(words)
    assert {word for word, n in counts.items() if n == often} == set(sample.references)
    assert len(sample.references) == 10
    assert set(counts.values()) == {often, seldom}
    others = [word for word in counts if word not in sample.references]
    assert not [word for word in others if any(common in word for common in sample.references)]
    assert sample.labels["words"] == ("compound" if length == 20000 else "plain")


def test_frequent_words_are_the_most_frequent() -> None:
    for index in range(3):
        sample = one("fwe", 3000, index=index)
        counts = Counter(sample.context.split("most often.\n", 1)[1].split())
        ranks = [word for word, _ in counts.most_common(5)]
        assert ranks[0] == "..." and tuple(ranks[1:4]) == sample.references
        assert counts[ranks[3]] > counts[ranks[4]]


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_questions_have_their_documents(name: str, folder: Path) -> None:
    samples = task(name, folder).samples(data.fake_count, 300, 6, 0)
    assert len(samples) == (2 if name == "qa_1" else 6)  # the one that cannot be answered is left out
    for sample in samples:
        assert any(answer in sample.context for answer in sample.references)
        numbers = [int(n) for n in re.findall(r"^Document (\d+):$", sample.context, re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 1
        assert fit.size(data.fake_count, sample) <= 300


def test_documents_of_the_same_article_come_first(folder: Path) -> None:
    samples = task("qa_1", folder).samples(data.fake_count, 400, 2, 0)
    wren = next(sample for sample in samples if "wren" in sample.question)
    documents = wren.context.split("Document ")[1:]
    assert len(documents) >= 4 and sum("Bird" in text or "wren" in text for text in documents) >= min(len(documents), 6)


def test_a_file_that_is_too_small_gives_all_it_has(folder: Path) -> None:
    sample = task("qa_1", folder).samples(data.fake_count, 100000, 1, 0)[0]
    assert sample.context.count("Document ") == 13


def test_scores() -> None:
    sample: Any = one("niah_multivalue")
    made = task("niah_multivalue")
    assert made.score(sample, ", ".join(sample.references)) == 1
    assert made.score(sample, sample.references[2]) == 0.25
    assert made.score(sample, "") == 0
    sample = Sample("", "", "", ("Piedmont", "in Italy"), 32)
    assert task("qa_1").score(sample, "it is in italy.") == 1 and task("vt").score(sample, "piedmont") == 0.5


@pytest.mark.parametrize("name", ruler.NAMES)
def test_no_room_is_one_sentence(name: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} needs at least \d+ tokens; 20 are given$"):
        task(name, folder).samples(data.fake_count, 20, 1, 0)
