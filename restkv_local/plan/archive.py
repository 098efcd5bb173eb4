"""Where the rows of an archive go and what they take: said, and refused, before the model is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import CELL_PAD, GUIDE_MAX, KV_TYPES, EvictConfig, Place, archive_place
from ..errors import ConfigError
from ..paths import shown, typed, work_folder
from . import machine

# Types of a cache that is quantized, and turns its rows for it: only such rows stand a second time.
_QUANTIZED = tuple(name for name in KV_TYPES if name.startswith("q"))


@dataclass(frozen=True)
class ArchivePlan:
    """An archive of all evicting layers.

    place: "ram" or "file". path: of the file; None: one of its own in the work folder. types: of its rows of K and
    V. rows: positions that it can hold. bytes: that it takes then, where it lies. guide: most tokens of a question that
    Engine.recall runs; 0: recurrent layers cannot forget one.
    """

    place: Place
    path: Path | None
    types: tuple[str, str]
    rows: int
    bytes: int
    guide: int

    @property
    def folder(self) -> Path:
        """Where its file is made."""
        return work_folder() if self.path is None else self.path.parent


def archive_types(evict: EvictConfig, kv_types: tuple[str, str]) -> tuple[str, str]:
    """Types of the archive's rows of K and V. Raises ConfigError for those that a cache of these types cannot have."""
    if evict.archive_type == "auto" or archive_place(evict.archive) == "none":
        return kv_types
    if evict.archive_type == "q4_0" and not set(kv_types) <= set(_QUANTIZED):
        raise ConfigError(
            f"archive_type 'q4_0' needs a cache of type {' or '.join(_QUANTIZED)}, K and V; "
            f"this one has {', '.join(kv_types)}: use archive_type 'auto' or 'q8_0'"
        )
    return evict.archive_type, evict.archive_type


def plan_archive(
    evict: EvictConfig, kv_types: tuple[str, str], *, context: int, bytes_per_row: int, guide: int
) -> ArchivePlan | None:
    """The archive of a cache for `context` positions, each `bytes_per_row` in it; None: there is none.

    guide: most tokens of a question that this cache can run. Raises ConfigError for types and paths that cannot be.
    """
    place = archive_place(evict.archive)
    if place == "none":
        return None
    path = None if evict.archive in (place, "none") else Path(os.path.abspath(typed(os.fspath(evict.archive))))
    if path is not None and path.is_dir():
        raise ConfigError(f"archive: '{shown(path)}' is a folder; name a file in it")
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"archive: the folder of '{shown(path)}' does not exist; make it first")
    types = archive_types(evict, kv_types)
    return ArchivePlan(place, path, types, context, context * bytes_per_row, min(guide, GUIDE_MAX))


def check_archive(
    archive: ArchivePlan, cache_bytes: int, free_memory: int | None, free_disk: Callable[[Path], int] | None = None
) -> None:
    """Refuse an archive that does not fit where it goes.

    cache_bytes: what the cache takes of the same memory. free_memory: bytes; None: not known. free_disk: of a folder;
    None asks the system. Raises ConfigError with the sum and with what fits.
    """
    row = max(1, archive.bytes // archive.rows)
    if archive.place == "ram":
        if free_memory is None or cache_bytes + archive.bytes <= free_memory:
            return
        rest = max(0, free_memory - cache_bytes) // row // CELL_PAD * CELL_PAD
        beside = (
            f" beside {machine.size(cache_bytes)} of cache, together {machine.size(cache_bytes + archive.bytes)}"
            if cache_bytes
            else ""
        )
        raise ConfigError(
            f"an archive of {archive.rows} positions needs {machine.size(archive.bytes)} of memory{beside}, and "
            f"{machine.size(free_memory)} are free; the largest n_ctx that fits is {rest}, or keep it in a file with "
            f"archive='file'"
        )
    free = (_free_disk if free_disk is None else free_disk)(archive.folder)
    if archive.bytes > free:
        raise ConfigError(
            f"an archive of {archive.rows} positions needs {machine.size(archive.bytes)} of disk, and "
            f"{machine.size(free)} are free in '{shown(archive.folder)}'; the largest n_ctx that fits is "
            f"{free // row // CELL_PAD * CELL_PAD}, or name a file on another disk with archive=PATH"
        )


def _free_disk(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(
            f"archive: the free space of '{shown(folder)}' cannot be read ({error.strerror}); name another file"
        ) from None
