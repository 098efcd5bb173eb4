"""What `restkv-bench archive` measures: what it costs to keep an archive, to read with recall and to ask again."""

from __future__ import annotations

import dataclasses
import datetime
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import DEFAULT_BATCH
from ..engine.settings import EngineSettings
from ..errors import RestkvError
from ..paths import work_folder
from .origin import device, versions
from .process import disk_read_bytes, drop_pages, load, memory_limit_bytes, page_cache_can_go
from .prose import prose_tokens
from .speed import padded, summary
from .stock import synchronize

QUESTION_TOKENS = 24
# What is asked: how much slower than stream a text may be read, the part of that time which a question may take, and
# how much faster a cut and a question must be than reading again; by the length of the text in tokens.
ASKED: dict[int, dict[str, float]] = {
    6144: {"slower": 0.15, "cut_faster": 20.0},
    32768: {"slower": 0.30, "question_share": 0.01},
}
_WARM_UP = 64

Engine = Any
Say = Callable[[str], None]


@dataclass(frozen=True)
class ArchiveSettings:
    """contexts: text lengths in tokens. questions: of each length, in a pair. pairs: repetitions of stream and recall.
    chunk: most tokens that are read with recall at once; None: what the engine does. cold: read and ask a second time
    with a file that the system holds nothing of."""

    contexts: tuple[int, ...]
    questions: int
    pairs: int
    chunk: int | None
    cold: bool


def measure(
    settings: EngineSettings, wanted: ArchiveSettings, engine_class: Callable[..., Any], say: Say
) -> Iterator[dict[str, Any]]:
    """Rows per context, with the device, versions, settings and date.

    Yields the result so far after each pair, so that a run that is stopped leaves what it measured.
    """
    if settings.archive == "none":
        raise RestkvError("restkv-bench archive needs an archive: add --archive ram or --archive file")
    if wanted.cold and (settings.archive == "ram" or not page_cache_can_go()):
        raise RestkvError("--cold reads a file from its disk: add --archive file, on a system that can drop its pages")
    rows: list[dict[str, Any]] = []
    for context in wanted.contexts:
        row: dict[str, Any] = {}
        for row in _rows(settings, wanted, context, engine_class, say):
            yield _result(settings, wanted, [*rows, row])
        rows.append(row)


def _result(settings: EngineSettings, wanted: ArchiveSettings, rows: list[dict[str, Any]]) -> dict[str, Any]:
    done = {name: rows[0][name] for name in ("model", "backend", "n_threads", "budget", "reserve", "pairs")}
    return {
        "rows": rows,
        "device": device() | {"memory_limit_bytes": memory_limit_bytes(), "load": load()},
        "versions": versions(),
        "settings": {**asdict(settings), **asdict(wanted), **done, "contexts": [row["context"] for row in rows]},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


@contextmanager
def _loaded(
    settings: EngineSettings, cold: bool, engine_class: Callable[..., Any], **options: Any
) -> Iterator[tuple[Engine, int | None]]:
    """An engine that reads with recall. cold: and its file, open a second time, by which the system can be told to
    forget pages; it has a name only until then, so that nothing is left when this process is killed."""
    if not cold:
        engine = settings.load(engine_class, evict=settings.evict(), **options)
        with closing(engine):
            yield engine, None
        return
    with tempfile.TemporaryDirectory(prefix="restkv-", dir=work_folder()) as folder:
        named = settings.archive if settings.archive != "file" else str(Path(folder, "archive"))
        engine = settings.load(engine_class, evict=settings.evict(archive=named), **options)
        with closing(engine):
            path = engine.plan.archive.path
            file = os.open(path, os.O_RDONLY)
            try:
                os.unlink(path)
                yield engine, file
            finally:
                os.close(file)


def _rows(
    settings: EngineSettings,
    wanted: ArchiveSettings,
    context: int,
    engine_class: Callable[..., Any],
    say: Say,
) -> Iterator[dict[str, Any]]:
    """The row of a context, after each pair."""
    n_ctx = padded(context + QUESTION_TOKENS + _WARM_UP)
    chunk = {} if wanted.chunk is None else {"n_ubatch": wanted.chunk, "n_batch": max(wanted.chunk, DEFAULT_BATCH)}
    plain = dataclasses.replace(settings, archive="none", prefill="stream")
    kept = dataclasses.replace(settings, prefill="recall")
    with (
        closing(plain.load(engine_class, evict=plain.evict(), n_ctx=n_ctx)) as stream,
        _loaded(kept, wanted.cold, engine_class, n_ctx=n_ctx, **chunk) as (recall, file),
    ):
        text = prose_tokens(context, recall.tokenize)
        asked = prose_tokens(QUESTION_TOKENS * (wanted.questions + 2), recall.tokenize, seed=1)
        questions = [asked[i : i + QUESTION_TOKENS] for i in range(0, len(asked), QUESTION_TOKENS)]
        pairs: list[_Pair] = []
        for number in range(wanted.pairs):
            say(f"{context:,} tokens: pair {number + 1} of {wanted.pairs}")
            pairs.append(_Pair(stream, recall, text, questions, file, number))
            report = recall.report()
            row = {
                "context": context,
                "model": report.model,
                "backend": report.backend,
                "n_threads": recall.n_threads,
                "budget": report.budget,
                "reserve": report.reserve,
                "chunk": recall._chunk,
                "pairs": len(pairs),
                "kv_bytes": report.kv_bytes,
                "archive_place": report.archive.place,
                "archive_types": list(report.archive.types),
                "archive_bytes": report.archive.bytes // report.context * context,
            } | summary([pair.figures for pair in pairs])
            yield row | {"asked": ASKED.get(context, {}), "note": pairs[-1].note}


class _Pair:
    """One pair: both read the text, who comes first in turn; then questions, a cut, and reading again. Seconds,
    bytes, and what follows from them, in `figures`."""

    def __init__(
        self,
        stream: Engine,
        recall: Engine,
        text: Sequence[int],
        questions: Sequence[Sequence[int]],
        file: int | None,
        number: int,
    ) -> None:
        self.stream, self.recall = stream, recall
        self.text, self.questions = list(text), [list(question) for question in questions]
        self.figures: dict[str, float | None] = {}
        self.note: str | None = None
        sides: list[Callable[[], None]] = [self._stream, self._read]
        for side in sides if number % 2 == 0 else reversed(sides):
            side()
        read = self.figures["read_seconds"] or 0.0
        self.figures["slower"] = read / (self.figures["stream_seconds"] or 1.0) - 1
        cpu = self.figures["read_cpu_seconds"] or 0.0
        self.figures["slower_cpu"] = cpu / (self.figures["stream_cpu_seconds"] or 1.0) - 1
        self._ask(read)
        self._cut()
        if file is not None:
            self._cold(file, read)

    def _stream(self) -> None:
        self.figures["stream_seconds"], self.figures["stream_cpu_seconds"] = _reading(self.stream, self.text)
        self.figures["stream_question_seconds"] = _asking(self.stream, self.text, self.questions[-1])

    def _read(self) -> None:
        recall, disk = self.recall, disk_read_bytes()
        before = recall.report().archive
        seconds, cpu = _reading(recall, self.text)
        report = recall.report()
        bytes_read = report.archive.read_bytes - before.read_bytes
        self.figures |= {
            "read_seconds": seconds,
            "read_cpu_seconds": cpu,
            "read_bytes": bytes_read,
            "read_disk_bytes": disk_read_bytes() - disk,
            "recall_seconds": report.recall_seconds,
            "recall_share": report.recall_seconds / seconds,
            "write_share": (report.archive.write_seconds - before.write_seconds) / seconds,
            "bytes_per_s": bytes_read / report.recall_seconds if report.recall_seconds else None,
            "copied_share": report.copied_cells / max(1, report.recalled_cells),
        }

    def _ask(self, read: float) -> None:
        """Questions behind the text, the first of which warms up what the reading of chunks left as it was."""
        _asking(self.recall, self.text, self.questions[-1])
        seconds, recalling, bytes_read = 0.0, 0.0, 0
        for question in self.questions[:-2]:
            before = self.recall.report().archive.read_bytes
            seconds += _asking(self.recall, self.text, question)
            report = self.recall.report()
            if report.reevaluated is not None:
                raise RestkvError(f"a question cannot be asked behind the text: {report.reevaluated}")
            recalling += report.recall_seconds
            bytes_read += report.archive.read_bytes - before
        n = len(self.questions) - 2
        self.figures |= {
            "question_seconds": seconds / n,
            "question_share": seconds / n / read,
            "question_recall_seconds": recalling / n,
            "question_bytes": bytes_read / n,
            "question_bytes_per_s": bytes_read / recalling if recalling else None,
        }

    def _cut(self) -> None:
        """A prompt that leaves the text in its middle, and the same prompt in an empty cache. Where sliding windows
        cannot go back the text is read again, so there is nothing to compare."""
        half = self.text[: len(self.text) // 2]
        cut = _asking(self.recall, half, self.questions[-2])
        self.note = self.recall.report().reevaluated
        self.figures |= {"cut_seconds": None, "again_seconds": None, "cut_faster": None}
        if self.note is None:
            self.recall.reset()
            again = _asking(self.recall, half, self.questions[-2])
            self.figures |= {"cut_seconds": cut, "again_seconds": again, "cut_faster": again / cut}

    def _cold(self, file: int, read: float) -> None:
        """The same text and questions, and before each chunk and question the system forgets the file's pages."""
        dropping = 0.0

        def drop(done: int = 0, total: int = 0) -> None:
            nonlocal dropping
            start = time.perf_counter()
            drop_pages(file)
            dropping += time.perf_counter() - start

        disk = disk_read_bytes()
        self.recall.on_progress = drop
        try:
            seconds, _ = _reading(self.recall, self.text)
        finally:
            self.recall.on_progress = None
        self.figures["cold_read_seconds"] = cold = seconds - dropping
        self.figures["cold_slower"] = cold / read - 1
        self.figures["cold_recall_seconds"] = self.recall.report().recall_seconds
        self.figures["cold_disk_bytes"] = disk_read_bytes() - disk
        seconds, recalling, bytes_read, disk = 0.0, 0.0, 0, disk_read_bytes()
        for question in self.questions[:-2]:
            drop()
            before = self.recall.report().archive.read_bytes
            seconds += _asking(self.recall, self.text, question)
            report = self.recall.report()
            recalling += report.recall_seconds
            bytes_read += report.archive.read_bytes - before
        n = len(self.questions) - 2
        self.figures |= {
            "cold_question_seconds": seconds / n,
            "cold_question_share": seconds / n / read,
            "cold_question_disk_bytes": (disk_read_bytes() - disk) / n,
            "cold_bytes_per_s": bytes_read / recalling if recalling else None,
        }


def _reading(engine: Engine, text: Sequence[int]) -> tuple[float, float]:
    """Seconds to read a text into an empty cache, and those of a processor: of all threads, and of no other program."""
    engine.reset()
    engine.eval(text[:_WARM_UP])
    engine.reset()
    start, start_cpu = time.perf_counter(), time.process_time()
    engine.eval(text)
    synchronize(engine)
    return time.perf_counter() - start, time.process_time() - start_cpu


def _asking(engine: Engine, text: Sequence[int], question: Sequence[int]) -> float:
    """Seconds from a prompt to the first token of its answer. What the cache holds of it is not read again."""
    prompt = [*text, *question]
    start = time.perf_counter()
    answer = engine.generate(prompt, temp=0.0)
    next(answer)
    seconds = time.perf_counter() - start
    answer.close()
    return seconds
