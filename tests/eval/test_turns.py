"""restkv-eval turns: what is planted in a text and asked about it, and both as tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import models
from engines import TEMPLATE
from restkv_local.errors import ConfigError
from restkv_local.eval.prompt import shared_length
from restkv_local.eval.turns import facts, functions, prose, strings
from restkv_local.eval.turns.document import INTRODUCTION, KINDS, PLAIN, Document, make
from restkv_local.eval.turns.material import THINGS, Question
from restkv_local.eval.turns.prompts import FRESH, KEPT, MODES, Chat, Form, Plain, frame, script, spans
from task_data import Counter, fake_count

LENGTH = 3000
# Words that a fact and a question in other words may share.
SMALL = frozenset("a an the of in on at by to is was it he be for from with who which what where his its".split())


def document(kind: str, length: int = LENGTH, questions: int = 6, number: int = 0, seed: int = 0) -> Document:
    return make(kind, fake_count, length, questions, number, seed)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w\w+", text.casefold())) - SMALL


# ---- documents ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_answers_stand_in_the_text_once_and_nowhere_in_the_question(kind: str, seed: int) -> None:
    found = document(kind, seed=seed)
    assert len(found.questions) == 6 and len({question.text for question in found.questions}) == 6
    for question in found.questions:
        assert question.targets and all(found.text.count(target) == 1 for target in question.targets)
        told = " ".join(question.targets)
        for part in question.wanted:
            assert part.strip('`"') in told and part in question.answer
            assert not re.search(rf"\b{part.strip('`')}\b", f"{question.text} {question.stem}")
        places = [found.text.index(target) for target in question.targets]
        assert question.kind.startswith("list") or places == sorted(places)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_fill_their_length_and_repeat(kind: str) -> None:
    for length in (1500, 6000):
        count = Counter()
        found = make(kind, count, length, 4, 0, 3)
        assert 0.97 * length < fake_count(found.text) <= length
        assert count.tokens < 20 * length
    assert found == make(kind, fake_count, 6000, 4, 0, 3)
    others = [make(kind, fake_count, 6000, 4, 1, 3), make(kind, fake_count, 6000, 4, 0, 4)]
    assert len({one.text for one in (found, *others)}) == 3
    assert [others[0].id, others[1].id] == [f"{kind}-1", f"{kind}-0"]


def test_planted_pieces_are_spread_and_asked_in_an_order_of_their_own() -> None:
    found = document("facts", questions=12)
    places = [found.text.index(question.targets[0]) / len(found.text) for question in found.questions]
    assert places != sorted(places)
    expected = [(i + 0.5) / 12 for i in range(12)]
    assert sorted(places) == pytest.approx(expected, abs=0.08)


def test_paraphrases_share_no_word_with_their_question() -> None:
    assert len({fact for fact, _, _ in facts.PARAPHRASES}) == len(facts.PARAPHRASES) == 24
    for fact, question, stem in facts.PARAPHRASES:
        told, asked = words(fact.format(name="")), words(f"{question} {stem}")
        # nor a word of the same stem: its first five letters
        assert not {word[:5] for word in told} & {word[:5] for word in asked}, (fact, question)
        assert not asked & {name.casefold() for name in facts.NAMES}
    assert not any(a != b and b.startswith(a) for a in facts.NAMES for b in facts.NAMES)


def test_pairs_stand_among_others() -> None:
    found = document("pairs")
    lines = re.findall(r'\{"([0-9a-f]{8})": "(\d{6})"\}', found.text)
    assert len(lines) == len(dict(lines)) == 6 * (1 + strings.OTHER_PAIRS)
    for question in found.questions:
        (key,) = re.findall(r'key "([0-9a-f]{8})"', question.text)
        assert dict(lines)[key] == question.answer


@pytest.mark.parametrize("seed", range(5))
def test_one_word_fits_its_beginning_and_end_and_others_fit_one_of_them(seed: int) -> None:
    found = document("affixes", questions=12, seed=seed)
    invented = re.findall(r'invented words is "(\w+)"', found.text)
    for question in found.questions:
        first, last = re.findall(r'"(\w+)"', question.text)
        fits = [word for word in invented if word.startswith(first) and word.endswith(last)]
        assert fits == list(question.parts)
        for one in (lambda w: w.startswith(first), lambda w: w.endswith(last)):  # noqa: B023
            assert len([word for word in invented if one(word)]) > 1


def test_chains_lead_to_their_value_in_as_many_hops() -> None:
    found = document("tracing", questions=9)
    told = dict(re.findall(r"VAR (\w+) = ((?:VAR )?\w+)\.", found.text))
    hops = []
    for question in found.questions:
        (at,) = re.findall(r"VAR (\w+)\?", question.text)
        n = 0
        while told[at].startswith("VAR "):
            at, n = told[at][4:], n + 1
        assert told[at] == question.answer and question.kind == f"tracing {n}"
        hops.append(n)
    assert sorted(hops) == sorted(strings.HOPS * 3)


def test_extremes_are_those_of_their_list() -> None:
    found = document("extremes", questions=7)
    for question in found.questions:
        (line,) = question.targets
        numbers = re.findall(r"\d+", line)
        assert len(numbers) == strings.NUMBERS
        pick = max if "largest" in question.text else min
        assert question.answer == pick(numbers, key=int) and words(line) & words(question.text) & set(THINGS)


def test_functions_are_found_by_what_they_do() -> None:
    known = {one.source: one for one in functions.library()}
    assert len(known) > 200 and len({one.name for one in known.values()}) == len(known)
    found = document("functions", length=6000)
    for question in found.questions:
        one = known[question.targets[0]]
        assert question.answer == f"{one.name}`" and one.description in question.text
        assert one.description in " ".join(one.source.split()).replace('""" ', '"""')
        assert one.name.casefold() not in question.text.casefold()
        assert f"def {one.name}(" in found.text


@pytest.mark.parametrize("n", [3, 7, 16])
def test_mixed_kinds_alternate(n: int) -> None:
    found = document("mixed", length=9000, questions=n)
    kinds = [question.kind.split()[1] for question in found.questions]
    assert kinds == [list(PLAIN)[i % len(PLAIN)] for i in range(n)]


def test_lists_ask_for_as_many_as_they_say() -> None:
    found = document("list", questions=12)
    sizes = []
    for question in found.questions:
        n = int(question.kind.split()[1])
        things = re.findall(r"the ([a-z-]+)(?:,| and |\?)", question.text)
        told = dict(re.findall(r"The code of the ([a-z-]+) is (\d{5})\.", found.text))
        assert question.answer.split(", ") == list(question.parts) == [told[thing] for thing in things]
        assert len(things) == len(question.targets) == n
        sizes.append(n)
    assert sorted(sizes) == sorted(facts.LOOK_UPS * 2)


def test_prose_is_real_and_ends_somewhere() -> None:
    known = prose.sentences()
    assert len(known) > 1000 and len(set(known)) == len(known)
    assert not any("\n" in sentence or len(sentence.split()) > 50 for sentence in known)
    text = document("facts").text
    assert text.startswith(INTRODUCTION) and text.endswith(".\n\n")
    assert sum(sentence in text for sentence in known) > 50


@pytest.mark.parametrize(
    ("kind", "length", "questions", "message"),
    [
        ("list", 200, 3, "tokens for its questions; choose longer --contexts"),
        ("facts", 10**6, 3, "tokens of text on this machine"),
        ("facts", LENGTH, 65, "there are 64 things for the kind 'facts' and 65 questions"),
        ("paraphrased", LENGTH, 25, "there are 24 paraphrased facts"),
        ("extremes", LENGTH, 129, "lower --questions"),
        ("functions", LENGTH, 10**5, "lower --questions"),
    ],
)
def test_what_cannot_be_asked_is_refused(kind: str, length: int, questions: int, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        document(kind, length, questions)


# ---- tokens -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["smollm2", "template", "raw"])
def talker(
    request: pytest.FixtureRequest, native: None, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """An engine that tokenizes, and how it writes a talk."""
    from restkv_local import Engine, EvictConfig

    template = TEMPLATE if request.param == "template" else None
    path = smollm2
    if request.param != "smollm2":
        path = models.write_random(
            tmp_path_factory.mktemp("turns") / "m.gguf", "llama", seed=3, template=template
        )
    engine = Engine(str(path), 256, EvictConfig(method="full"), n_threads=1)
    yield engine, Plain(engine) if request.param == "raw" else Chat(engine)
    engine.close()


def scripted(talker: tuple[Any, Form], kind: str, length: int = 2000) -> Any:
    engine, form = talker

    def count(text: str) -> int:
        return len(engine.tokenize(text.encode(), add_bos=False, special=False))

    made = make(kind, count, length - frame(form), 3, 0, 5)
    return script(engine, form, made, MODES)


def text_of(engine: Any, tokens: Any) -> str:
    return b"".join(engine.detokenize([int(token)], special=True) for token in tokens).decode()


@pytest.mark.parametrize("kind", ["facts", "tracing", "affixes", "functions", "list"])
def test_targets_are_at_the_positions_that_are_said(talker: tuple[Any, Form], kind: str) -> None:
    engine = talker[0]
    found = scripted(talker, kind, 3000 if kind == "list" else 2000)
    assert found.text <= (3000 if kind == "list" else 2000)
    for mode in MODES:
        for turn in found.turns[mode]:
            told = text_of(engine, turn.prompt[turn.targets])
            assert turn.targets.max() < found.text and len(set(turn.targets.tolist())) == len(turn.targets)
            assert all(target in told for target in turn.question.targets)
            rest = sum(map(len, turn.question.targets)) + 24 * len(turn.question.targets)
            assert len(told) <= rest, "no more than the pieces, and the tokens that they share with their neighbours"
            right = [text_of(engine, turn.answer[first:last]) for first, last in turn.parts]
            assert all(part in piece for part, piece in zip(turn.question.wanted, right, strict=True))


def test_a_talk_goes_on_behind_right_answers_or_begins_anew(talker: tuple[Any, Form]) -> None:
    engine, form = talker
    found = scripted(talker, "facts")
    first = found.turns[KEPT][0]
    said = ""
    for kept, fresh in zip(found.turns[KEPT], found.turns[FRESH], strict=True):
        question: Question = kept.question
        assert fresh.question is question and kept.number == fresh.number
        for turn in (kept, fresh):
            assert shared_length(turn.prompt, first.prompt) >= found.text
            read = text_of(engine, turn.prompt)
            assert read.endswith(question.stem.rstrip()) or read.endswith(question.stem)
            assert text_of(engine, turn.prompt[-turn.stem :]).strip() == question.stem.strip()
            assert (read + text_of(engine, turn.answer)).endswith(f"{question.stem}{question.answer}")
            assert question.text not in text_of(engine, turn.prompt[: found.text])
            assert question.text in read and turn.positions <= found.positions
        behind, alone = (text_of(engine, turn.prompt[found.text :]) for turn in (kept, fresh))
        assert said in behind and (not said or said not in alone)
        said = f"{question.stem}{question.answer}"
    assert found.positions == max(turn.positions for turn in found.turns[KEPT])


def test_places_of_texts_in_pieces() -> None:
    pieces = [b"ab", b"c", b"", b"dab", b"c"]
    assert spans(pieces, [b"bc", b"da"]) == [(0, 2), (3, 4)]
    assert spans(pieces, [b"d", b"ab"]) == [(3, 4), (3, 4)]
    assert spans(pieces, [b"d", b"ab"], anywhere=True) == [(3, 4), (0, 1)]
    assert spans(pieces, [b"abc", b"x", b"c"]) == [(0, 2)]
