"""An engine's archive in Python: the file that it works in, and what it says of itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .. import native
from ..errors import ConfigError
from ..native.binding import LIBRARY
from ..paths import shown
from ..plan.archive import ArchivePlan
from ..plan.memory import GGML_TYPES, MemoryPlan
from .report import ArchiveReport, RecallReport

_SECOND = 1e-6  # the native side counts microseconds
_NAMES = {number: name for name, number in GGML_TYPES.items()}
# Files that engines of this process work in: a second one would take the rows from under the first.
_in_use: set[Path] = set()


class WorkingFile:
    """The file of an archive: the native side makes it anew, `remove` takes it away when nothing is open any more.

    One that the user did not name loses its name as soon as it is open, where the system can do that: it then goes with
    the process, however that ends. path: None for an archive that needs no file. Raises ConfigError when it cannot be.
    """

    def __init__(self, plan: ArchivePlan | None) -> None:
        self.path: Path | None = None
        self._folder: Path | None = None
        self._ours = True
        if plan is None or plan.place != "file":
            return
        if plan.path is None:
            try:
                # a folder that nobody else may read: rows tell of the text
                self._folder = Path(tempfile.mkdtemp(prefix="restkv-", dir=plan.folder))
            except OSError as error:
                raise ConfigError(
                    f"archive: no file can be made in '{shown(plan.folder)}' ({error.strerror}); "
                    f"name one with archive=PATH"
                ) from None
            self.path = self._folder / "archive"
            return
        if plan.path in _in_use:
            raise ConfigError(f"archive: another engine works in '{shown(plan.path)}'; name another file")
        _in_use.add(plan.path)
        self.path, self._ours = plan.path, not plan.path.exists()

    def made(self) -> None:
        """The archive is in it now, whatever was there before."""
        self._ours = True
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # Windows keeps what is open: remove() comes again

    @property
    def found_at(self) -> Path | None:
        """Where a user can look: the file, or the folder that it lies in without a name."""
        if self.path is None or self._folder is None or self.path.exists():
            return self.path
        return self._folder.parent

    def remove(self) -> None:
        """Take the file away, unless it is somebody else's that was refused; a second call does nothing."""
        path, self.path = self.path, None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        elif path is not None:
            _in_use.discard(path)
            if self._ours:
                with contextlib.suppress(OSError):
                    os.unlink(path)


def archive_stats(ctx: Any, plan: MemoryPlan) -> native.ArchiveStats | None:
    """What the archive of a context says of itself; None: it has none."""
    if plan.archive is None:
        return None
    stats = native.ArchiveStats()
    native.check(LIBRARY.restkv_get_archive(ctx, ctypes.byref(stats)))
    return stats


def archive_report(stats: native.ArchiveStats | None, path: Path | None) -> ArchiveReport | None:
    """The same for a report. path: of its file, or of the folder that it lies in."""
    if stats is None:
        return None
    return ArchiveReport(
        place=next(name for name, number in native.PLACE.items() if number == stats.place),
        types=(_NAMES[stats.type_k], _NAMES[stats.type_v]),
        rows=stats.n_rows,
        bytes=stats.bytes,
        host_bytes=stats.bytes_host,
        written_bytes=stats.bytes_written,
        read_bytes=stats.bytes_read,
        write_seconds=stats.us_write * _SECOND,
        path=None if path is None else shown(path),
        backend=_backend(stats),
        backend_reason=recall_reason(stats),
    )


def recall_reason(stats: native.ArchiveStats | None) -> str | None:
    """Why layers that should attend as graphs, when they recall, do not."""
    return None if stats is None else stats.reason.decode("utf-8", "replace") or None


def _backend(stats: native.ArchiveStats) -> str:
    ways = [] if stats.n_layer_graph == stats.n_layer else ["cpu"]
    if stats.n_layer_graph:
        ways.append(f"graph ({stats.devices.decode('utf-8', 'replace').replace(',', ', ')})")
    return " + ".join(ways)


def recalled_between(
    before: native.ArchiveStats | None, after: native.ArchiveStats | None, plan: MemoryPlan
) -> dict[str, Any]:
    """What was recalled from one moment to another: fields of a report. The native side counts cells of all layers and
    KV heads together, a report those of one."""
    if before is None or after is None:
        return {}
    heads = max(1, plan.shares.total // plan.budget)
    return {
        "recalled": after.n_recalls - before.n_recalls,
        "recalled_cells": round((after.n_chosen - before.n_chosen) / heads),
        "copied_cells": round((after.n_copied - before.n_copied) / heads),
        "recall_seconds": _seconds(before, after),
    }


def answered_between(before: native.ArchiveStats | None, after: native.ArchiveStats | None) -> dict[str, Any]:
    """What tokens of an answer recalled from one moment to another: fields of a report."""
    if before is None or after is None:
        return {}
    n, n_layers = after.n_recalls - before.n_recalls, after.n_layers - before.n_layers
    return {
        "answer_recalled": n,
        "answer_recall_layers": n_layers / n if n else 0.0,
        "answer_recall_seconds": _seconds(before, after),
    }


def _seconds(before: native.ArchiveStats, after: native.ArchiveStats) -> float:
    microseconds: int = after.us_score - before.us_score + after.us_copy - before.us_copy
    return microseconds * _SECOND


def recall_report(
    before: native.ArchiveStats, after: native.ArchiveStats, plan: MemoryPlan, seconds: float
) -> RecallReport:
    """What one call of Engine.recall did in so many seconds."""
    found = recalled_between(before, after, plan)
    chosen, copied = after.n_chosen - before.n_chosen, after.n_copied - before.n_copied
    return RecallReport(
        seconds=seconds,
        bytes=after.bytes_read - before.bytes_read,
        cells=found["recalled_cells"],
        moved=found["copied_cells"],
        live_share=1.0 - copied / chosen if chosen else 1.0,
    )
