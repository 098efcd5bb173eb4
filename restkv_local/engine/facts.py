"""What the native side tells of a context: cells, positions, evictions."""

from __future__ import annotations

import ctypes
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..errors import ConfigError
from ..native.binding import LIBRARY, c
from ..paths import shown
from ..plan.devices import DeviceMemory
from ..plan.memory import MemoryPlan
from .archive import answered_between, archive_report, archive_stats, recall_reason, recalled_between
from .report import Eviction, Report, Turn

EVENTS_MAX = 256
_SECOND = 1e-6  # the native side counts microseconds


class Facts:
    """Reads restkv_stats and restkv_events of one context. A context that never evicts (method "full") has none of
    them and gets the figures of its plan."""

    def __init__(self, ctx: Any, plan: MemoryPlan, archive_path: Path | None = None) -> None:
        self._ctx = ctx
        self._plan = plan
        self._memory = c.llama_get_memory(ctx)
        model = c.llama_get_model(ctx)
        self._recurrent = c.llama_model_is_recurrent(model) or c.llama_model_is_hybrid(model)
        self._next_id = 0
        self._seen: tuple[native.Stats | None, int] = (None, 0)
        self._evictions: deque[Eviction] = deque(maxlen=EVENTS_MAX)
        self.evict_seconds = 0.0
        self.memory = memory_of(ctx)
        self._archive_path = archive_path
        self._archive = self._archive_before = self._archive_answer = self.archive

    @property
    def positions(self) -> int:
        """Position of the next token."""
        return int(c.llama_memory_seq_pos_max(self._memory, 0)) + 1

    def check_positions(self, n_tokens: int) -> None:
        """After a state was loaded: all parts of the cache must end at one position, and hold its text."""
        stats = self._stats()
        end = self.positions if stats is None else int(stats.pos_next)
        if end != self.positions or not n_tokens <= end <= self._plan.context:
            raise ConfigError(
                f"this state is damaged: it has {n_tokens} tokens, and its cells end at position {end}; "
                f"read the text again instead"
            )

    @property
    def cells(self) -> int:
        """Cells in use, per layer and KV head."""
        stats = self._stats()
        return self.positions if stats is None else int(stats.n_cells)

    @property
    def free(self) -> int:
        """Cells that are free until the next eviction."""
        stats = self._stats()
        return self._plan.capacity - self.positions if stats is None else int(stats.n_free)

    @property
    def position_exact(self) -> int:
        """The cache can be cut at this position and after it."""
        stats = self._stats()
        return 0 if stats is None else int(stats.pos_exact)

    def why_not_cut(self, position: int) -> str:
        """Why the cache, which refused to be cut at a position, could not be."""
        failed = native.failure()  # first: what is asked next forgets it
        if failed is not None and failed.status == native.ARCHIVE:
            return failed.reason
        exact = self.position_exact
        if position < exact and self._plan.archive is None:
            return f"cells before position {exact} have been evicted for what followed"
        if self._recurrent:
            return "the state of its recurrent layers cannot go back"
        return f"the sliding window before position {position} has been overwritten by what followed"

    @property
    def n_evictions(self) -> int:
        stats = self._stats()
        return 0 if stats is None else int(stats.n_evictions)

    @property
    def backend_reason(self) -> str | None:
        """Why layers that should run as graphs do not, as `look` saw it last."""
        stats = self._seen[0]
        return None if stats is None else stats.reason.decode("utf-8", "replace") or None

    @property
    def recall_reason(self) -> str | None:
        """The same of recalls."""
        return recall_reason(self._archive)

    def look(self) -> None:
        """Take the figures that `report` gives, at a moment when no other thread uses the context."""
        self._seen = self._stats(), self.positions
        self._archive = self.archive

    @property
    def archive(self) -> native.ArchiveStats | None:
        """What the archive says of itself, now."""
        return archive_stats(self._ctx, self._plan)

    def begin_turn(self) -> None:
        """What is recalled from here on belongs to the next turn."""
        self._archive_before = self._archive_answer = self.archive

    def begin_answer(self) -> None:
        """What is recalled from here on belongs to an answer."""
        self._archive_answer = self.archive

    def collect(self) -> list[Eviction]:
        """Evictions since the last call, oldest first (at most the last 256)."""
        self.look()
        n = self.n_evictions
        if n <= self._next_id:
            return []
        events = (native.Event * EVENTS_MAX)()
        count = LIBRARY.restkv_get_events(self._ctx, events, EVENTS_MAX)
        # by number, not by id: a loaded state counts its own evictions on
        new = [_eviction(event) for event in events[max(0, count - (n - self._next_id)) : count]]
        self._next_id = n
        self._evictions.extend(new)
        self.evict_seconds += sum(eviction.seconds for eviction in new)
        return new

    def forget(self) -> None:
        """After a state was loaded: the evictions of its past are not news, and ours are not in its count."""
        self._next_id = self.n_evictions
        self._evictions.clear()

    def kept(self, layer: int, head: int) -> npt.NDArray[np.int32]:
        """Positions that a KV head of a layer holds, ascending. Raises ConfigError for another layer or head."""
        if layer < 0 or head < 0:
            raise ConfigError(f"layer and head count from 0; got {layer} and {head}")
        if self._stats() is None:
            return np.arange(self.positions, dtype=np.int32)
        n = LIBRARY.restkv_kept(self._ctx, layer, head, None, 0)
        if n < 0:
            native.check(LIBRARY.restkv_last_status())
        out = np.empty(n, dtype=np.int32)
        LIBRARY.restkv_kept(self._ctx, layer, head, out.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), n)
        return out

    def report(self, turn: Turn, notices: list[str]) -> Report:
        """The report, as `look` saw it last; see Report for its fields."""
        plan, (stats, positions) = self._plan, self._seen
        return Report(
            model=shown(plan.model.name),
            arch=plan.arch,
            method=plan.method,
            prefill=plan.prefill,
            backend=_backend(stats),
            backend_reason=self.backend_reason,
            context=plan.context,
            budget=plan.budget,
            reserve=plan.reserve,
            capacity=plan.capacity,
            window=plan.window,
            kv_bytes=plan.kv_bytes if stats is None else stats.bytes_kv,
            ring_bytes=0 if stats is None else stats.bytes_ring,
            table_bytes=0 if stats is None else stats.bytes_table,
            wo_bytes=0 if stats is None else stats.bytes_wo,
            sums_bytes=0 if stats is None else stats.bytes_sums,
            positions=positions,
            cells=positions if stats is None else stats.n_cells,
            n_evictions=0 if stats is None else stats.n_evictions,
            evictions=list(self._evictions),
            notices=list(notices),
            allocation=plan.allocation,
            budget_total=plan.shares.total,
            memory=self.memory,
            archive=archive_report(self._archive, self._archive_path),
            **recalled_between(self._archive_before, self._archive, plan),
            **answered_between(self._archive_answer, self._archive),
            **vars(turn),
        )

    def _stats(self) -> native.Stats | None:
        if self._plan.method == "full":
            return None
        stats = native.Stats()
        native.check(LIBRARY.restkv_get_stats(self._ctx, ctypes.byref(stats)))
        return stats


def memory_of(ctx: Any) -> list[DeviceMemory]:
    """What a context takes on each device."""
    n = LIBRARY.restkv_get_memory(ctx, None, 0)
    native.check(LIBRARY.restkv_last_status())
    rows = (native.Memory * n)()
    n = min(n, LIBRARY.restkv_get_memory(ctx, rows, n))
    return [
        DeviceMemory(
            device=row.device.decode("utf-8", "replace"),
            layers=row.n_layer,
            weights_bytes=row.bytes_weights,
            kv_bytes=row.bytes_kv,
            other_bytes=row.bytes_other,
            ring_bytes=row.bytes_ring,
            wo_bytes=row.bytes_wo,
            table_bytes=row.bytes_table,
            graph_bytes=row.bytes_graph,
            compute_bytes=row.bytes_compute,
            free_bytes=row.memory_free,
            total_bytes=row.memory_total,
        )
        for row in rows[:n]
    ]


def _backend(stats: native.Stats | None) -> str:
    """Where the layers are evicted, in words."""
    if stats is None:
        return "none"
    ways = []
    if stats.n_layer_graph + stats.n_layer_host < stats.n_layer:
        ways.append("cpu-fused")
    if stats.n_layer_graph:
        ways.append(f"graph ({stats.devices.decode('utf-8', 'replace').replace(',', ', ')})")
    if stats.n_layer_host:
        ways.append("cpu-host-copy")
    return " + ".join(ways)


def _eviction(event: native.Event) -> Eviction:
    return Eviction(
        id=event.id,
        position=event.pos_next,
        guide=event.n_guide,
        cells_before=event.n_cells,
        cells_after=event.n_kept,
        layers=event.n_layer,
        layers_graph=event.n_layer_graph,
        layers_host=event.n_layer_host,
        rows=event.n_rows,
        threads=event.n_threads,
        bytes_moved=event.bytes_moved,
        seconds=event.us_total * _SECOND,
        attend_seconds=event.us_attend * _SECOND,
        score_seconds=event.us_score * _SECOND,
        smooth_seconds=event.us_smooth * _SECOND,
        select_seconds=event.us_select * _SECOND,
        compact_seconds=event.us_compact * _SECOND,
    )
