"""ROUGE-L in the two forms that benchmarks report: of LongBench (package rouge 1.0.1) and of InfiniteBench
(rougeLsum of package rouge_score). Our own code: the packages are unmaintained, pull in more than they are needed for,
and one recurses as deep as a text is long. A longest common subsequence is not unique, so ties are broken as there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError

# Cells of one table of the longest common subsequence (2 bytes each).
_TABLE_MAX = 2**26
_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(answer: str, reference: str) -> float:
    """F of summary-level ROUGE-L over distinct words, as LongBench scores summaries (package rouge 1.0.1).

    Sentences end at full stops; words are what stands between blanks, case kept. U is the set of words in the longest
    common subsequences of every pair of sentences; P = |U| / distinct words of the answer, R = |U| / distinct words of
    the reference, F = 2 P R / (P + R + 1e-8). 0 when either has no sentence.
    """
    ours, theirs = _sentences(answer), _sentences(reference)
    if not ours or not theirs:
        return 0.0
    union: set[str] = set()
    for right in theirs:
        for sentence in ours:
            union.update(right[i] for i in _common(right, sentence, up_on_tie=False))
    precision = len(union) / len({word for sentence in ours for word in sentence})
    recall = len(union) / len({word for sentence in theirs for word in sentence})
    return 2 * (precision * recall / (precision + recall + 1e-8))


def rouge_l_sum(answer: str, reference: str) -> float:
    """F of rougeLsum without stemming, as InfiniteBench scores En.Sum (package rouge_score, Lin 2004, section 3.2).

    Sentences are lines; words are runs of a-z and 0-9 in lower case. For each sentence of the reference, the words in
    the union of its longest common subsequences with all sentences of the answer are hits, each at most as often as
    both texts have it. P = hits / words of the answer, R = hits / words of the reference, F = 2 P R / (P + R).
    """
    ours, theirs = (
        [words for line in text.split("\n") if (words := _WORD.findall(line.lower()))] for text in (answer, reference)
    )
    n_ours, n_theirs = sum(map(len, ours)), sum(map(len, theirs))
    if not n_ours or not n_theirs:
        return 0.0
    left = [Counter(word for sentence in text for word in sentence) for text in (ours, theirs)]
    hits = 0
    for right in theirs:
        places = {i for sentence in ours for i in _common(right, sentence, up_on_tie=True)}
        for word in (right[i] for i in sorted(places)):
            if all(counts[word] > 0 for counts in left):
                hits += 1
                for counts in left:
                    counts[word] -= 1
    precision, recall = hits / n_ours, hits / n_theirs
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def _sentences(text: str) -> list[list[str]]:
    """Lists of words; a sentence of blanks alone counts as one empty word, as the package has it."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common(a: Sequence[str], b: Sequence[str], up_on_tie: bool) -> list[int]:
    """Places in `a` of a longest common subsequence with `b`, ascending. Walked back from the end; where both steps
    keep the length, `up_on_tie` says whether the step is back in `a`."""
    if len(a) * len(b) > _TABLE_MAX:
        raise ConfigError(f"a text of {max(len(a), len(b)):,} words is too long for ROUGE-L")
    ids = {word: i for i, word in enumerate(dict.fromkeys([*a, *b]))}
    codes_a = np.array([ids[word] for word in a], dtype=np.int64)
    codes_b = np.array([ids[word] for word in b], dtype=np.int64)
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=np.uint16 if min(len(a), len(b)) < 2**16 else np.uint32)
    for i, code in enumerate(codes_a):
        grown = table[i, :-1] + (codes_b == code).astype(table.dtype)
        table[i + 1, 1:] = np.maximum.accumulate(np.maximum(table[i, 1:], grown))
    places: list[int] = []
    i, j = len(a), len(b)
    while i and j:
        if codes_a[i - 1] == codes_b[j - 1]:
            i, j = i - 1, j - 1
            places.append(i)
        elif table[i - 1, j] > table[i, j - 1] or (up_on_tie and table[i - 1, j] == table[i, j - 1]):
            i -= 1
        else:
            j -= 1
    return places[::-1]
