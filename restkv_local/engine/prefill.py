"""How tokens are read: four ways for a prompt that is longer than the cells, one for a token of an answer.

stream: in chunks; llama_decode itself evicts when no cell is free.
exact: the whole text with full attention (there are cells for the whole context), one eviction at its end.
guided: like stream, but each eviction is scored by the user's question: its tokens are run first, and dropped again.
  llama_decode never evicts by itself then: a guide runs only where cells are free for it.
recall: with an archive. Each chunk chooses the cells again, in every layer before it attends; an eviction only drops
  the cells since the one before. A chunk is one ubatch, or the reserve where that is smaller, whatever cells are free:
  which chunks there are follows from the length of the prompt alone.

The chunks of the others end where the free cells end. So evictions happen at the same positions whatever the size of a
batch is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..errors import EvictionError
from ..plan.memory import MemoryPlan


class Reader(Protocol):
    """What reading needs from an engine."""

    plan: MemoryPlan
    n_tokens: int

    @property
    def _chunk(self) -> int:
        """Most tokens of a chunk that is read with recall."""

    @property
    def _cells(self) -> int:
        """Cells in use now, per layer and KV head on average."""

    @property
    def _free(self) -> int:
        """Cells that are free until the next eviction."""

    @property
    def _plain(self) -> int:
        """Tokens of an answer that come before the next one that recalls, or may."""

    def _decode(self, tokens: Sequence[int]) -> None:
        """Decode at most plan.n_batch tokens at the next positions."""

    def _read_chunk(self, tokens: Sequence[int]) -> None:
        """Decode a chunk with recall, after an eviction where it does not fit; without an effect when that fails."""

    def _read_answer(self, token: int) -> None:
        """The same for a token of an answer, where layers may keep the cells of an earlier one."""

    def _evict(self) -> None:
        """Evict down to the budget."""

    def _run_guide(self, guide: Sequence[int]) -> None:
        """Decode a guide, evict with its queries, drop its cells."""

    def _take_back(self, n: int) -> Sequence[int]:
        """Cut the last n tokens off the text and return them; none when they cannot be cut."""

    def _read(self, done: int, total: int) -> None:
        """Called after each chunk: events and progress; raises Cancelled."""


def read(engine: Reader, tokens: Sequence[int], guide: Sequence[int]) -> None:
    """Read a prompt the way the plan says; of one token only with recall, else that is a step."""
    plan = engine.plan
    total = len(tokens)
    if plan.recalls:
        engine._read(0, total)
        for done in range(0, total, engine._chunk):
            chunk = tokens[done : done + engine._chunk]
            engine._read_chunk(chunk)
            engine._read(done + len(chunk), total)
        return
    guided = plan.prefill == "guided" and plan.evicts
    exact = plan.prefill == "exact"
    done = 0
    engine._read(0, total)
    while done < total:
        left = total - done
        free = engine._free
        size = min(plan.n_batch, left)
        if guided and left > free:
            room = free - len(guide)
            if room <= 0:
                _evict_guided(engine, guide)
                if engine._free <= free:
                    raise EvictionError(f"an eviction left {engine._cells} cells in use; nothing more can be read")
                continue
            size = min(size, room)
        elif 0 < free < size:
            size = free
        engine._decode(tokens[done : done + size])
        done += size
        if exact and done == total and plan.evicts and engine._cells > plan.budget:
            engine._evict()
        engine._read(done, total)


def _evict_guided(engine: Reader, guide: Sequence[int]) -> None:
    """Evict with the end of a guide, as much of it as cells and positions are left for.

    After an answer fewer may be left than the window has rows. The last tokens of the text then make way for the guide,
    else the answer's queries would score, and are read again behind the eviction.
    """
    plan = engine.plan
    room = min(engine._free, plan.context - engine.n_tokens)
    missing = min(len(guide), plan.window) - room
    again = engine._take_back(missing) if missing > 0 else []
    run = guide[max(0, len(guide) - room - len(again)) :]
    if run:
        engine._run_guide(run)
    else:
        engine._evict()
    for i in range(0, len(again), plan.n_batch):
        engine._decode(again[i : i + plan.n_batch])


def step(engine: Reader, token: int, answers: bool = True) -> None:
    """Read one token: of an answer, or (answers False) the one that a prompt has left."""
    plan = engine.plan
    if plan.prefill == "exact" and plan.evicts and engine._cells >= plan.limit:
        engine._evict()
    if answers and engine._plain == 0:
        engine._read_answer(token)
    else:
        engine._decode([token])


def guide_tokens(plan: MemoryPlan, question: Sequence[int], prompt: Sequence[int]) -> Sequence[int]:
    """The guide: the last tokens of the question, or of the prompt (a window of them) when there is no question."""
    guide = question or prompt[-min(plan.window, plan.guide or 1) :]
    return guide[-plan.guide :] if plan.guide else []


def tail_from(question: bytes, end: Sequence[int], pieces: Callable[[Sequence[int]], list[bytes]]) -> list[int]:
    """The tokens of a prompt's end from the last occurrence of a question on; none when it does not occur.

    pieces: the text of each token. A token that holds the question's first byte belongs to it.
    """
    texts = pieces(end)
    start = b"".join(texts).rfind(question.strip())
    if start < 0:
        return []
    for i, text in enumerate(texts):
        start -= len(text)
        if start < 0:
            return list(end[i:])
    return []
