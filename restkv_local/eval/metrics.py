"""Measures of answers as pure functions: an answer and the right ones in, 0 (wrong) to 1 (right) out.

Each says whose measure it is. Where an official one has an oddity that changes scores, it is kept and named.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

Metric = Callable[[str, str], float]
"""Score of an answer against one right answer."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CONTROL = re.compile(r"[\x00-\x1f]")
# The Chinese and full-width marks that LongBench and InfiniteBench drop.
_PUNCTUATION_ZH = re.compile(
    r"[\u2013\u2014\u2018\u2019\u201b-\u201f\u2026\u2027\u3001-\u3003\u300b-\u3011\u3014-\u301f\u3030\u303e\u303f"
    r"\ufe4f\uff01-\uff0d\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff64]"
)


def best(metric: Metric, answer: str, references: Sequence[str]) -> float:
    """The best score over several right answers; 0 without any."""
    return max((metric(answer, reference) for reference in references), default=0.0)


# ---- words -------------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles (a, an, the), single blanks. In this order, as SQuAD's official
    evaluation (Rajpurkar et al., 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """2 P R / (P + R), with P and R the parts of the answer's and of the reference's tokens that both have, counted
    with repetition. 0 when they share none, also when both are empty."""
    same = (Counter(answer) & Counter(reference)).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(answer), same / len(reference)
    return 2 * precision * recall / (precision + recall)


def qa_f1(answer: str, reference: str) -> float:
    """F1 of the normalized words (SQuAD; LongBench and InfiniteBench use it for English questions)."""
    return token_f1(normalize(answer).split(), normalize(reference).split())


def normalize_zh(text: str) -> str:
    """Lower case without white space and without ASCII and Chinese punctuation (InfiniteBench)."""
    return "".join(_PUNCTUATION_ZH.sub("", text.lower().translate(_PUNCTUATION)).split())


def qa_f1_zh(answer: str, reference: str) -> float:
    """F1 of characters, each a token (InfiniteBench's Zh.QA)."""
    return token_f1(normalize_zh(answer), normalize_zh(reference))


# ---- RULER -------------------------------------------------------------------------------------


def clean(answer: str) -> str:
    """Answer as RULER scores it: control characters become line ends, no white space around."""
    return _CONTROL.sub("\n", answer.strip()).strip()


def string_match_all(answer: str, references: Sequence[str]) -> float:
    """The part of the references that the answer contains, whatever their case (RULER, Hsieh et al., 2024)."""
    if not references:
        return 0.0
    text = clean(answer).lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_part(answer: str, references: Sequence[str]) -> float:
    """1 when the answer contains at least one of the references, whatever their case (RULER's question answering)."""
    text = clean(answer).lower()
    return float(any(reference.lower() in text for reference in references))


# ---- LongBench ---------------------------------------------------------------------------------


def first_line(answer: str) -> str:
    """The first line after leading line ends: all that LongBench scores of trec, triviaqa and samsum."""
    return answer.lstrip("\n").split("\n")[0]


def classification(answer: str, reference: str, classes: Sequence[str]) -> float:
    """1 / n when the right class is among the n classes that the answer names, else 0 (LongBench's trec).

    Names that are part of the right class's name do not count. The official loop takes them out of the list that it
    walks over, so the name after a removed one is not looked at; that is kept.
    """
    named = [name for name in classes if name in answer]
    place = 0
    while place < len(named):
        if named[place] in reference and named[place] != reference:
            named.remove(named[place])
        place += 1
    return 1 / len(named) if reference in named else 0.0


def count(answer: str, reference: str) -> float:
    """The part of the numbers in the answer that equal the reference (LongBench's passage_count)."""
    numbers = re.findall(r"\d+", answer)
    return numbers.count(reference) / len(numbers) if numbers else 0.0


def retrieval(answer: str, reference: str) -> float:
    """The part of the numbers in the answer that equal the number in "Paragraph N" (LongBench's
    passage_retrieval_en). 0 when the reference has none."""
    right = re.search(r"Paragraph (\d+)", reference)
    return count(answer, right[1]) if right else 0.0


def code_similarity(answer: str, reference: str) -> float:
    """Similarity of the first line of the answer that is code to the reference (LongBench's lcc, repobench-p).

    Code is a line without a back quote, `#` or `//`. The similarity is fuzzywuzzy's `ratio`: difflib's
    2 M / T (M matched characters, T characters of both), rounded to hundredths; 0 when either is empty.
    """
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == reference:
        return 1.0
    if not line or not reference:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, reference).ratio()) / 100
