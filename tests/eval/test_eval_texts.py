"""The texts of restkv-eval: needles, and what perplexity and divergence read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from restkv_local.errors import ConfigError
from restkv_local.eval import niah, texts

# ---- needles ------------------------------------------------------------------------------------


def _words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def test_needles_fill_the_length_and_stand_at_their_depths() -> None:
    task = niah.Niah(depths=4)
    samples = task.samples(_words, 2000, task.cells, seed=1)
    assert len(samples) == task.cells == 16 and len({sample.id for sample in samples}) == 16
    assert samples == task.samples(_words, 2000, task.cells, seed=1)
    assert samples != task.samples(_words, 2000, task.cells, seed=2)
    for kind in ("passkey", "sentence", "paraphrase"):
        assert sorted(s.labels["depth"] for s in samples if s.labels["kind"] == kind) == [0.125, 0.375, 0.625, 0.875]
    for sample in samples:
        assert 2000 - 40 < _words(sample.context + sample.question + sample.answer_prefix) <= 2000
        if sample.labels["kind"] != "several":
            assert sample.context.count(sample.references[0]) >= 1
            place = sample.context.index(sample.references[0]) / len(sample.context)
            assert place == pytest.approx(sample.labels["depth"], abs=0.06)
    assert len({sample.context for sample in samples}) == 4  # one document for all kinds of a depth


def test_a_paraphrased_needle_shares_no_word_with_its_question() -> None:
    for needle, question, stem in niah._PARAPHRASES:
        fact, asked = (set(re.findall(r"\w+", text.casefold())) for text in (needle, f"{question} {stem}"))
        assert not fact & asked, fact & asked
        assert not any(name.casefold() in asked for name in niah._NAMES)


def test_scores_of_needles_by_hand() -> None:
    task = niah.Niah()
    by_kind = {s.labels["kind"]: s for s in task.samples(_words, 1000, task.cells, 0)}
    key = by_kind["passkey"]
    assert task.score(key, f" {key.references[0]}.") == 1.0 and task.score(key, "12") == 0.0
    best = by_kind["sentence"]
    assert task.score(best, best.references[0].upper() + "!") == 1.0
    numbers = re.findall(r"\d+", by_kind["several"].references[0])
    assert task.score(by_kind["several"], f"{numbers[2]} and {numbers[0]}") == pytest.approx(2 / 3)
    assert task.score(by_kind["several"], "") == 0.0


def test_needles_refuse_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="no room for 4 depths"):
        niah.Niah().samples(_words, 60, 16, 0)
    with pytest.raises(ConfigError, match="not a kind of needle"):
        niah.Niah(["haystack"])
    with pytest.raises(ConfigError, match="at least 1"):
        niah.Niah(depths=0)


# ---- texts --------------------------------------------------------------------------------------


def _bytes(text: bytes) -> list[int]:
    return list(text)


@pytest.mark.parametrize("kind", texts.KINDS)
def test_built_in_texts_have_their_length_and_repeat(kind: str) -> None:
    found = texts.passages((), (kind,), 500, 2, 3, _bytes)
    assert [len(passage.tokens) for passage in found] == [500, 500]
    assert (found[0].tokens == texts.passages((), (kind,), 500, 1, 3, _bytes)[0].tokens).all()
    assert (found[0].tokens != found[1].tokens).any()
    assert (found[0].tokens != texts.passages((), (kind,), 500, 1, 4, _bytes)[0].tokens).any()


def test_a_talk_repeats_what_was_said() -> None:
    said: dict[str, str] = {}
    answers = 0
    thing = ""
    for line in texts.dialogue(600, seed=5).splitlines():
        if told := re.search(r"I left the (\w+ \w+) (.+) today", line):
            said[told[1]] = told[2]
        if asked := re.search(r"leave the (\w+ \w+)\?", line):
            thing = asked[1]
        if answer := re.search(r"I left it (.+), as I told you", line):
            assert answer[1] == said[thing]
            answers += 1
    assert answers > 5


def test_texts_from_files(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n".join(f"line {n}" for n in range(200)))
    (passage,) = texts.passages((str(file),), (), 100, 1, 0, _bytes)
    assert passage.kind == "a.txt" and bytes(passage.tokens.tolist()).decode() in file.read_text()
    assert list(texts.digests([str(file)])) == ["a.txt"]
    with pytest.raises(ConfigError, match="has fewer than 5000 tokens"):
        texts.passages((str(file),), (), 5000, 1, 0, _bytes)
    with pytest.raises(ConfigError, match="two texts are named"):
        texts.passages((str(file), str(file)), (), 50, 1, 0, _bytes)
