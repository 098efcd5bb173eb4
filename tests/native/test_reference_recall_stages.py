"""The stages of a recall in torch: worked out by hand, and against loops over numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from restkv_local.reference.recall import (  # noqa: E402
    RecallSettings,
    box,
    choose,
    group_scores,
    outlying_rows,
    recall_score,
    restored,
    weights,
)

PLAIN: dict[str, Any] = {"attn_scale": 1.0, "softcap": 0.0, "sinks": None}


def test_outlying_rows_by_hand() -> None:
    # m = (1/3, 1/6), so that u . m is 1/3, 1/3, 1/6, 1/3, 0 and -1/3: lengths do not count, zeros are no direction
    q = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [5.0, 0.0], [0.0, 0.0], [-3.0, 0.0]]])
    assert outlying_rows(q, 2).tolist() == [[4, 5]]
    assert outlying_rows(q, 4).tolist() == [[0, 2, 4, 5]], "the first of three equal ones"
    assert outlying_rows(q, 6).tolist() == outlying_rows(q, 9).tolist() == [[0, 1, 2, 3, 4, 5]]
    both = torch.cat([q, q.flip(1)])
    assert outlying_rows(both, 2).tolist() == [[4, 5], [0, 1]], "every head has rows of its own"


def test_weights_by_hand() -> None:
    q, k, k_own = torch.zeros(1, 3, 1), torch.zeros(1, 3, 1), torch.zeros(1, 2, 1)
    pos = torch.tensor([[1, 3, 4]])
    expected = [[1 / 2, 1 / 2, 0], [1 / 4] * 3, [1 / 5] * 3]
    np.testing.assert_allclose(weights(q, pos, k, k_own, **PLAIN)[0], expected, rtol=1e-6)
    sink = torch.zeros(1)
    expected = [[1 / 3, 1 / 3, 0], [1 / 5] * 3, [1 / 6] * 3]
    np.testing.assert_allclose(weights(q, pos, k, k_own, **{**PLAIN, "sinks": sink})[0], expected, rtol=1e-6)
    # two query heads read one KV head; logits 6 and 0, capped at 2
    q, k = torch.tensor([[[1.0]], [[0.0]]]), torch.tensor([[[3.0], [0.0]]])
    a = weights(q, torch.tensor([[1], [1]]), k, k[:, :0], attn_scale=2.0, softcap=2.0, sinks=None)
    top = np.exp(2 * np.tanh(3.0))
    np.testing.assert_allclose(a[:, 0], [[top / (top + 1), 1 / (top + 1)], [0.5, 0.5]], rtol=1e-6)


def test_group_scores_by_hand() -> None:
    a = torch.tensor(
        [[[1.0, 2.0], [3.0, 0.0]], [[5.0, 4.0], [0.0, 8.0]], [[1.0, 1.0], [0.0, 2.0]], [[1.0, 0.0], [0, 0]]]
    )
    assert group_scores(a, 2).tolist() == [[4.0, 5.0], [1.0, 1.0]]
    assert group_scores(a, 1).tolist() == [[2.5, 3.0]]


def test_box_by_hand() -> None:
    s = torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 3.0, 0.0, 0.0]])
    np.testing.assert_allclose(box(s, 3), [[1.5, 7 / 3, 14 / 3, 6], [1.5, 1, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(box(s, 21), [[3.75] * 4, [0.75] * 4], rtol=1e-6)
    assert torch.equal(box(s, 1), s)
    # in float32 2^24 + 1 is 2^24, and 1 + 1 + 2^24 is not
    big = float(2**24)
    assert box(torch.tensor([[big, 1.0, 1.0]]), 5).tolist() == [[float(np.float32(big) / np.float32(3))] * 3]
    assert box(torch.tensor([[1.0, 1.0, big]]), 5).tolist() == [[float(np.float32(big + 2) / np.float32(3))] * 3]


def test_choose_by_hand() -> None:
    y = torch.tensor([[9.0, 1.0, 5.0, 7.0, 5.0, 5.0, 0.0, 9.0], [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 9.0, 9.0]])
    assert choose(y, 5, 2, 1).tolist() == [[0, 2, 3, 6, 7], [0, 2, 3, 6, 7]], "of equal ones the lower position"
    assert choose(y, 6, 2, 1).tolist() == [[0, 2, 3, 4, 6, 7], [0, 2, 3, 4, 6, 7]]
    assert choose(y, 5, 1, 0).tolist() == [[0, 2, 3, 4, 7], [2, 3, 4, 6, 7]]
    assert choose(y, 8, 2, 1).tolist() == choose(y, 9, 2, 1).tolist() == [list(range(8))] * 2


def test_restored_by_hand() -> None:
    assert restored([0, 3, 9], 6, budget=6, window=2, sinks=1) == [0, 1, 2, 3, 4, 5]
    assert restored([0, 3, 5, 9], 12, budget=6, window=2, sinks=1) == [0, 3, 5, 9, 10, 11]
    assert restored([3, 5, 7, 9, 30], 12, budget=6, window=2, sinks=1) == [0, 5, 7, 9, 10, 11], "the highest first"
    assert restored([0, 3, 10], 12, budget=6, window=2, sinks=1) == [0, 3, 8, 9, 10, 11], "then what it did not hold"


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize(("heads", "n"), [((4, 2), 40), ((3, 3), 9), ((6, 1), 5)])
def test_scores_are_those_of_a_loop(heads: tuple[int, int], n: int, sink: bool, softcap: float) -> None:
    """The same, in loops over numbers."""
    (n_head, n_kv), n_archive, n_own, d = heads, 150, 30, 8
    rng = np.random.default_rng(n)
    q, k, own = (rng.normal(0, 1.5, shape) for shape in ((n_head, n, d), (n_kv, n_archive, d), (n_kv, n_own, d)))
    sinks = rng.normal(0, 2, n_head)
    pos = np.arange(n_archive + n_own - n, n_archive + n_own)
    settings = RecallSettings(n_rows=6, kernel=7, sinks=2)
    s = np.zeros((n_kv, n_archive))
    for h in range(n_head):
        u = [x / np.linalg.norm(x) for x in q[h]]
        m = sum(u) / n
        speak = sorted(range(n), key=lambda i: (u[i] @ m, i))[:6]  # noqa: B023
        best = np.zeros(n_archive)
        for i in speak:
            z = [q[h, i] @ x * 0.5 for x in [*k[h * n_kv // n_head], *own[h * n_kv // n_head]][: pos[i] + 1]]
            z = [softcap * np.tanh(x / softcap) if softcap else x for x in z]
            total = sum(np.exp(z)) + (np.exp(sinks[h]) if sink else 0.0)
            seen = np.exp(z)[:n_archive] / total
            best[: len(seen)] = np.maximum(best[: len(seen)], seen)
        s[h * n_kv // n_head] += best / (n_head // n_kv)
    y = np.array([[x[max(0, p - 3) : p + 4].mean() for p in range(n_archive)] for x in s])

    got, chosen = recall_score(
        torch.from_numpy(q).float(), torch.from_numpy(pos), torch.from_numpy(k).float(), torch.from_numpy(own).float(),
        settings=settings, budget=50, window=10, attn_scale=0.5, softcap=softcap,
        sinks=torch.from_numpy(sinks).float() if sink else None,
    )  # fmt: skip
    np.testing.assert_allclose(got, y, rtol=2e-5)
    for head in range(n_kv):
        best = sorted(range(2, 140), key=lambda p: (-y[head, p], p))[:38]  # noqa: B023
        assert chosen[head].tolist() == sorted([0, 1, *best, *range(140, 150)])
