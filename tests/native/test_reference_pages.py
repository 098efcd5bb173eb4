"""What else a recall of the reference can choose: pages, by hand; everything, against a cache that forgot nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from recalling import BUDGET, RESERVE, loader, read, tokens  # noqa: E402
from restkv_local.config import EvictConfig  # noqa: E402
from restkv_local.reference.everything import WholeEngine  # noqa: E402
from restkv_local.reference.model import ReferenceEngine  # noqa: E402
from restkv_local.reference.pages import (  # noqa: E402
    PAGE_SIZES,
    PagedEngine,
    centroids,
    choose_pages,
    largest_sizes,
    page_scores,
)
from restkv_local.reference.recall import RecallSettings, group_scores, outlying_rows, weights  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loader(tmp_path_factory.mktemp("models"))


def test_centroids_by_hand() -> None:
    k = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [5.0, 6.0]]])
    means, counts = centroids(k, 2)
    assert means.tolist() == [[[2.0, 1.0], [5.0, 6.0]]] and counts.tolist() == [2.0, 1.0]


def test_pages_of_one_position_are_positions() -> None:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator)

    q, k, k_own = normal(4, 9, 8), normal(2, 50, 8), normal(2, 12, 8)
    q_pos, settings = torch.arange(53, 62), RecallSettings(n_rows=5)
    how: dict[str, Any] = {"attn_scale": 0.7, "softcap": 3.0, "sinks": normal(4)}
    rows = outlying_rows(q, 5)
    speaking = torch.gather(q, 1, rows[:, :, None].expand(-1, -1, 8))
    want = group_scores(weights(speaking, q_pos[rows], k, k_own, **how), 2)
    np.testing.assert_allclose(page_scores(q, q_pos, k, k_own, size=1, settings=settings, **how), want, rtol=1e-5)
    # equal keys: a page has the attention of all of its positions
    k = k[:, :1].expand(-1, 50, -1)
    single, paged = (page_scores(q, q_pos, k, k_own, size=size, settings=settings, **how) for size in (1, 8))
    np.testing.assert_allclose(paged[:, 0], 8 * single[:, 0], rtol=1e-5)
    np.testing.assert_allclose(paged[:, -1], 2 * single[:, 0], rtol=1e-5)


def test_chosen_pages_by_hand() -> None:
    y = torch.tensor([[0.0, 5.0, 9.0, 5.0, 0.0], [7.0, 0.0, 0.0, 0.0, 0.0]])
    # 19 positions, pages of 4; always 0 and 18
    first, second = choose_pages(y, 4, 19, 9, 1, 1).tolist()
    assert first == [0, 4, 5, 6, 8, 9, 10, 11, 18], "the third page, and the beginning of the first of two equal ones"
    assert second == [0, 1, 2, 3, 4, 5, 6, 7, 18]


def test_the_largest_size_that_keeps_enough() -> None:
    y = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    single = torch.tensor([[0, 1], [0, 1]])
    paged = {8: torch.tensor([[0, 1], [1, 2]]), 16: torch.tensor([[0, 2], [2, 3]])}
    assert largest_sizes(y, single, paged, share=0.8) == [16, 8], "6 of 7 are enough; else the smallest"
    assert largest_sizes(y, single, paged, share=0.9) == [8, 8]


def test_a_paged_engine_holds_pages(model: Any) -> None:
    own = PagedEngine(model("llama"), BUDGET, BUDGET + RESERVE, archive=True)
    read(own, tokens(600))
    first = {il: list(sizes) for il, sizes in own.sizes.items()}
    n_kv = own.model.spec.n_head_kv[0]
    assert len(first) == own.model.spec.n_layer and all(len(sizes) == n_kv for sizes in first.values())
    assert {size for sizes in first.values() for size in sizes} <= set(PAGE_SIZES)
    own.decode(tokens(20, seed=4), recall=True)
    assert own.sizes == first, "found once"
    window, n = EvictConfig().window, own.pos_exact
    for head, size in enumerate(own.sizes[1]):
        held = own.kept(1, head)
        chosen = held[(held >= 4) & (held < n - window)]
        assert len(held) == BUDGET + own.n_tokens - n
        pages = [chosen[chosen // size == page] for page in np.unique(chosen // size)]
        # whole but for the ends of what can be chosen, and the one that filled the cells
        whole = [len(page) == size or page[0] == 4 or page[-1] == n - window - 1 for page in pages]
        assert whole.count(False) <= 1


def test_everything_is_attended_to_as_if_it_had_not_been_evicted(model: Any) -> None:
    """The rows that reading left, in a cache that never evicts: the same logits."""
    own = WholeEngine(model("llama"), BUDGET, BUDGET + RESERVE, archive=True)
    read(own, tokens(500))
    n, end = own.pos_exact, own.n_tokens
    assert BUDGET < n < end
    whole = ReferenceEngine(own.model)
    whole.decode(tokens(1))
    for cache, mine, archive in zip(whole._caches, own._caches, own._archives.values(), strict=True):
        tail = slice(mine.cells - (end - n), mine.cells)
        cache.pos = torch.arange(end).repeat(len(mine.pos), 1)
        cache.k = torch.cat([archive.k, mine.k[:, tail]], dim=1)
        cache.v = torch.cat([archive.v, mine.v[:, tail]], dim=1)
        cache.votes = cache.votes.new_zeros(cache.pos.shape)
    whole.n_tokens = end

    own.attend_to_everything()
    question = tokens(30, seed=5)
    np.testing.assert_allclose(own.decode(question, recall=True), whole.decode(question), atol=1e-4)
    for token in tokens(RESERVE, seed=6):  # more than there are free cells
        a, b = own.decode([token]), whole.decode([token])
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert own.kept(1, 0).tolist() == list(range(own.n_tokens))
