"""What an engine did: numbers for people, logs and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..config import QUESTION_SHOWN, EvictConfig
from ..plan.devices import DeviceMemory

# Why a report names no sources until somebody wants to know them.
NOT_ASKED = "nobody has asked: call sources() after an answer, or make the engine with sources=True"


@dataclass(frozen=True)
class Eviction:
    """One eviction. Times are seconds; those of the stages are summed over threads and divided by their number.

    id: 0, 1, 2, ... since the model was loaded.
    position: of the next token when it happened, the guide excluded.
    guide: tokens of the question that scored and were dropped again (guided prefill), else 0.
    cells_before, cells_after: per layer and KV head.
    layers: that evicted; of these, layers_graph: scored and moved by graphs on the backend that holds their cache,
    layers_host: scored through a copy on the host.
    rows: queries of the window that scored. bytes_moved: of K and V.
    """

    id: int
    position: int
    guide: int
    cells_before: int
    cells_after: int
    layers: int
    layers_graph: int
    layers_host: int
    rows: int
    threads: int
    bytes_moved: int
    seconds: float
    attend_seconds: float
    score_seconds: float
    smooth_seconds: float
    select_seconds: float
    compact_seconds: float


@dataclass(frozen=True)
class ArchiveReport:
    """The archive of an engine: the rows of its evicting layers, outside the cells.

    place: "ram" or "file"; path: of the file, or of the folder where it lies without a name; None in memory. types: of
    its rows of K and V. rows: positions that are in it. bytes: that it can grow to, where it lies; host_bytes: of it
    and its buffers in memory now. written_bytes, read_bytes, write_seconds: since the model was loaded.
    backend: what attends when cells are chosen again, "cpu", "graph (CUDA0)", or both with " + "; backend_reason: why
    layers that should run as graphs do not, or None.
    """

    place: str
    types: tuple[str, str]
    rows: int
    bytes: int
    host_bytes: int
    written_bytes: int
    read_bytes: int
    write_seconds: float
    path: str | None
    backend: str = "cpu"
    backend_reason: str | None = None


@dataclass(frozen=True)
class RecallReport:
    """What Engine.recall did.

    seconds: all of it, running the question included. bytes: read from the archive. cells: chosen, per layer and KV
    head; moved: of them, those that were copied from the archive; live_share: part of them that was in the cells
    already. Where nothing has been evicted there is nothing to choose: no cells, and a live_share of 1.
    """

    seconds: float
    bytes: int
    cells: int
    moved: int
    live_share: float


@dataclass(frozen=True)
class Source:
    """A passage of the prompt that an answer looked at.

    start, end: characters of the prompt's text, which is what Engine.prompt_text gives for its tokens: control tokens
    are no part of it. text: what stands there. positions: of its first token, and behind its last. weight: the largest
    attention that any head paid to a position while a token of the answer was found, from 0 to 1, the mean over the
    positions around the one where this is largest.
    """

    start: int
    end: int
    text: str
    positions: tuple[int, int]
    weight: float


@dataclass(frozen=True)
class Report:
    """State of an engine, and figures of its last turn (the last prompt and its answer).

    Of the engine: model (file name), arch, method, prefill (as configured), backend (where evictions run: "cpu-fused",
    "graph (CUDA0)", "cpu-host-copy", or several with " + "), backend_reason (why layers that should run as graphs do
    not, or None), context (positions), allocation, budget, budget_total (cells of all KV heads and layers that survive
    an eviction), reserve, capacity (physical cells), window, kv_bytes, ring_bytes, table_bytes, wo_bytes, sums_bytes,
    positions and cells in use, n_evictions since loading, the last 256 evictions, notices (each said once), memory
    (what was allocated at load, by device), archive (None without one), question (for which the cells were last chosen,
    of a long one the end; None: the text's own last tokens chose, or nothing has been evicted).

    Of the last turn: prefill_used ("none" when the prompt was read without an eviction), prefill_evictions (while the
    prompt was read; guided_evictions of them scored by the question), prompt_tokens, reused_tokens (already in the
    cache), read_tokens (the others, or what was read of them before a stop), reevaluated (why cached text was read
    again, or None), prefill_seconds (guide_seconds of it for running the question), evict_seconds (inside prefill and
    decode), decode_seconds, completion_tokens, recalled (how often cells were chosen again: once per chunk that was
    read, per question, and per token of the answer that recalled), recalled_cells (chosen then, added up, per layer and
    KV head), copied_cells (of them, those that came from the archive), recall_seconds (inside prefill and decode). Of
    that, while the answer was written, up to now: answer_recalled (tokens), answer_recall_layers (in which these did,
    on average), answer_recall_seconds.

    sources (passages that the answer looked at most, by weight; see Engine.sources), sources_tokens (of the answer,
    whose queries told), sources_reason (why there are none, or None).
    """

    model: str
    arch: str
    method: str
    prefill: str
    prefill_used: str
    backend: str
    context: int
    budget: int
    reserve: int
    capacity: int
    window: int
    kv_bytes: int
    ring_bytes: int
    table_bytes: int
    wo_bytes: int
    sums_bytes: int
    positions: int
    cells: int
    n_evictions: int
    evictions: list[Eviction] = field(default_factory=list)
    backend_reason: str | None = None
    prompt_tokens: int = 0
    reused_tokens: int = 0
    reevaluated: str | None = None
    prefill_seconds: float = 0.0
    guide_seconds: float = 0.0
    evict_seconds: float = 0.0
    decode_seconds: float = 0.0
    completion_tokens: int = 0
    prefill_evictions: int = 0
    guided_evictions: int = 0
    read_tokens: int = 0
    notices: list[str] = field(default_factory=list)
    allocation: str = EvictConfig.allocation
    budget_total: int = 0
    memory: list[DeviceMemory] = field(default_factory=list)
    archive: ArchiveReport | None = None
    question: str | None = None
    recalled: int = 0
    recalled_cells: int = 0
    copied_cells: int = 0
    recall_seconds: float = 0.0
    answer_recalled: int = 0
    answer_recall_layers: float = 0.0
    answer_recall_seconds: float = 0.0
    sources: tuple[Source, ...] = ()
    sources_tokens: int = 0
    sources_reason: str | None = NOT_ASKED


def shown_question(text: str | None) -> str | None:
    """A question as a report tells it: of a long one its end, where it is asked. None: there is none."""
    text = (text or "").strip()
    return (text if len(text) <= QUESTION_SHOWN else f"... {text[-QUESTION_SHOWN:].lstrip()}") or None


@dataclass
class Turn:
    """Figures of the turn that runs or ran last; see Report."""

    prefill_used: str = "none"
    prompt_tokens: int = 0
    reused_tokens: int = 0
    reevaluated: str | None = None
    prefill_seconds: float = 0.0
    guide_seconds: float = 0.0
    evict_seconds: float = 0.0
    decode_seconds: float = 0.0
    completion_tokens: int = 0
    prefill_evictions: int = 0
    guided_evictions: int = 0
    read_tokens: int = 0
    sources: tuple[Source, ...] = ()
    sources_tokens: int = 0
    sources_reason: str | None = NOT_ASKED
    question: str | None = None
