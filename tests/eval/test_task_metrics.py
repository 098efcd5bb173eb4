"""Measures of answers against values worked out by hand, and their edges."""

from __future__ import annotations

import pytest

from restkv_local.errors import ConfigError
from restkv_local.eval import metrics, rouge
from restkv_local.eval.infinitebench import scoring
from restkv_local.eval.reason import arc, common


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The cat, a dog; an eel!", "cat dog eel"),
        ("  ThE\tTheatre\n", "theatre"),
        ("a", ""),
        ("", ""),
        ("it's", "its"),
        ("Zürich's café", "zürichs café"),
        ("a.b.", "ab"),  # marks go before articles
        ("“the”", "“ ”"),  # only ASCII marks go
    ],
)
def test_normalize(text: str, plain: str) -> None:
    assert metrics.normalize(text) == plain


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the cat sat", "a cat", 2 / 3),  # P 1/2, R 1
        ("cat cat cat", "cat cat", 0.8),  # P 2/3, R 1
        ("Paris.", "paris", 1.0),
        ("", "paris", 0.0),
        ("the", "the", 0.0),  # nothing is left of either
        ("dog", "cat", 0.0),
        ("naïve Müller", "müller", 2 / 3),
    ],
)
def test_qa_f1(answer: str, reference: str, score: float) -> None:
    assert metrics.qa_f1(answer, reference) == pytest.approx(score)


def test_qa_f1_zh_counts_characters() -> None:
    assert metrics.qa_f1_zh("“北京 市”。", "北京") == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    assert metrics.qa_f1_zh("，。！", "，。！") == 0.0
    assert metrics.normalize_zh("《书》A．b，Ｃ") == "《书a．bｃ"  # these two marks stay, as in the official list


def test_best_of_none_is_wrong() -> None:
    assert metrics.best(metrics.qa_f1, "x", ()) == 0.0
    assert metrics.best(metrics.qa_f1, "x", ("y", "x")) == 1.0


def test_string_match() -> None:
    assert metrics.string_match_all("It is 12 and\x00ABC ", ("12", "abc", "77")) == pytest.approx(2 / 3)
    assert metrics.string_match_all("", ("12",)) == 0.0
    assert metrics.string_match_all("12", ()) == 0.0
    assert metrics.string_match_part("somewhere in PIEDMONT.", ("Piedmont", "x")) == 1.0
    assert metrics.string_match_part("nowhere", ("Piedmont", "x")) == 0.0
    assert metrics.clean(" \x01a\x1fb\t ") == "a\nb"


def test_classification() -> None:
    classes = ("Location", "Location of a city", "Person", "City")
    assert metrics.classification("Location", "Location", classes) == 1.0
    # Both stand in the answer; the shorter one is part of the right one and does not count.
    assert metrics.classification("Location of a city", "Location of a city", classes) == 1.0
    # The longer one stands in the answer too, and is not part of the right one.
    assert metrics.classification("Location of a city", "Location", classes) == 0.5
    assert metrics.classification("Person or City", "Person", classes) == 0.5
    assert metrics.classification("", "Person", classes) == 0.0
    # The name after a removed one is passed over: "ab" stays beside the right one.
    assert metrics.classification("abc", "abc", ("a", "ab", "abc")) == 0.5


def test_count_and_retrieval() -> None:
    assert metrics.count("There are 12, not 13 or 12.", "12") == pytest.approx(2 / 3)
    assert metrics.count("none", "12") == 0.0
    assert metrics.count("012", "12") == 0.0
    assert metrics.retrieval("Paragraph 3", "Paragraph 3") == 1.0
    assert metrics.retrieval("Paragraph 3 or 4", "Paragraph 4") == 0.5
    assert metrics.retrieval("3", "no number") == 0.0


def test_code_similarity() -> None:
    assert metrics.code_similarity("\n\n# a comment\n```python\nreturn x\nmore", "return x") == 1.0
    # "return y" and "return x": 7 of 8 characters match, 2 * 7 / 16.
    assert metrics.code_similarity("return y", "return x") == 0.88
    assert metrics.code_similarity("// only a comment", "return x") == 0.0
    assert metrics.code_similarity("", "return x") == 0.0
    assert metrics.code_similarity("", "") == 1.0  # as fuzzywuzzy has it


def test_first_line() -> None:
    assert metrics.first_line("\n\nAnna\nBerta") == "Anna"
    assert metrics.first_line("") == ""


# ---- ROUGE -------------------------------------------------------------------------------------


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "the cat the mat": distinct words 3; answer 4 distinct, reference 5.
    ours, theirs = "the cat on the mat", "the cat sat near the mat"
    assert rouge.rouge_l(ours, theirs) == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert rouge.rouge_l("a b. c d", "c d. a b") == pytest.approx(1.0)  # the union over pairs of sentences
    assert rouge.rouge_l("a b c d", "c d a b") == pytest.approx(0.5)  # one sentence each: one of the halves
    assert rouge.rouge_l("The", "the") == 0.0  # case counts


@pytest.mark.parametrize("measure", [rouge.rouge_l, rouge.rouge_l_sum])
def test_rouge_of_nothing(measure: metrics.Metric) -> None:
    assert measure("", "a") == measure("a", "") == measure("...", "a") == 0.0
    assert measure("x", "y") == 0.0


def test_rouge_l_sum_by_hand() -> None:
    # Lin (2004), section 3.2: w1..w5 against "w1 w2 w6 w7 w8" and "w1 w3 w8 w9 w5": union w1 w2 w3 w5, 4 of 5.
    recall, precision = 4 / 5, 4 / 10
    score = rouge.rouge_l_sum("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5")
    assert score == pytest.approx(2 * recall * precision / (recall + precision))
    # A word is a hit at most as often as both have it.
    assert rouge.rouge_l_sum("a", "a\na") == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert rouge.rouge_l_sum("THE Cat!", "the cat") == 1.0


def test_rouge_does_not_recurse_and_is_bounded() -> None:
    words = " ".join(f"w{i}" for i in range(3000))
    assert rouge.rouge_l(words, words) == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="too long"):
        rouge.rouge_l(words * 4, words * 4)


@pytest.mark.parametrize(
    ("answer", "reference", "rouge_package", "rouge_score_package"),
    [
        ("the cat. on the mat. sat", "a cat sat. near the mat on it", 0.6153846106508877, 0.42857142857142855),
        ("x a b x c. b a", "a x b a c. x", 0.999999995, 0.6153846153846153),
        ("Über  alles, was\nist. .", "was ist über alles", 0.4444444395061729, 0.75),
        ("one two\nthree one two", "two one\nthree two two", 0.6666666616666668, 0.6),
    ],
)
def test_rouge_equals_the_packages(
    answer: str, reference: str, rouge_package: float, rouge_score_package: float
) -> None:
    """Figures of rouge 1.0.1 and rouge_score 0.1.2, ties among longest common subsequences included."""
    assert rouge.rouge_l(answer, reference) == pytest.approx(rouge_package, abs=1e-12)
    assert rouge.rouge_l_sum(answer, reference) == pytest.approx(rouge_score_package, abs=1e-12)


# ---- InfiniteBench -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "answer", "references", "score"),
    [
        (scoring.first_number, " 01234, or 5", ("01234",), 1),
        (scoring.first_number, "1234", ("01234",), 0),
        (scoring.first_number, "none", ("01234",), 0),
        (scoring.any_word, '"ab-1".', ("ab-1",), 1),
        (scoring.any_word, "xab-1", ("ab-1",), 0),
        (scoring.dialogue, "It's Anna.", ("ANNA",), 1),
        (scoring.dialogue, "", ("ANNA",), 0),
        (scoring.last_integer, "It returns: -4.", ("-4",), 1),
        (scoring.last_integer, "4 or 5", ("4",), 0),
        (scoring.last_integer, "", ("4",), 0),
        (scoring.found_number, "49.", ("49",), 1),
        (scoring.found_number, "49.0", ("49",), 0),
        (scoring.found_number, "49.5", ("49.5",), 1),
        (scoring.found_number, "it is", ("49",), 0),
        (scoring.leading_numbers, "[3, 05, 9]", ("3", "5", "8", "1"), 0.5),
        (scoring.leading_numbers, "", ("3",), 0),
        (scoring.leading_numbers, "0, 1", ("0", "1"), 1),
        (scoring.debug, "B. run", ("run", "B"), 1),
        (scoring.debug, "The answer is: run", ("run", "B"), 1),
        (scoring.debug, "The answer is:", ("run", "B"), 0),
        (scoring.debug, "B", ("run", "B"), 0),  # the script wants a mark after the letter
        (scoring.debug, "", ("run", "B"), 0),
        (scoring.choice, "B", ("Berta", "B"), 1),
        (scoring.choice, "Berta", ("Berta", "B"), 1),  # begins with B
        (scoring.choice, "zoe", ("zoe", "B"), 1),
        (scoring.choice, "so the answer is B", ("Berta", "B"), 1),
        (scoring.choice, "so the answer is", ("Berta", "B"), 0),
        (scoring.choice, "maybe C", ("Berta", "B"), 0),
        (scoring.choice, " ", ("Berta", "B"), 0),
        (scoring.choice, "none", ("Berta", "B"), 0),
    ],
)
def test_infinitebench(measure: object, answer: str, references: tuple[str, ...], score: float) -> None:
    assert callable(measure)
    assert measure(answer, references) == score


# ---- reasoning ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3 * 6 = 18. The answer is 18.", "18"),
        ("The answer is: $1,234.50", "1234.50"),
        ("#### -7", "-7"),
        ("So 4, then 5", "5"),
        ("The answer is 4. Is it? The answer is 5.", "5"),
        ("The answer is 4.\n\nQuestion: what is 9?", "4"),
        ("The answer is unknown", None),
        ("", None),
    ],
)
def test_number_of(answer: str, number: str | None) -> None:
    assert common.number_of(answer) == number


def test_same_number() -> None:
    assert common.same_number("The answer is 18.0", "18")
    assert common.same_number("1,018", "1018")
    assert not common.same_number("1,2", "12")
    assert not common.same_number("none", "18")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is B.", "B"),
        ("(C)", "C"),
        ("A. light", "A"),
        ("A plant needs light", None),
        ("D", "D"),
        ("I think\nB", "B"),
        ("the answer is a plant", None),
        ("", None),
        ("3", "3"),
    ],
)
def test_letter_of(answer: str, letter: str | None) -> None:
    assert arc.letter_of(answer) == letter
