"""Sessions: a text that was read, in a file. It is what a saved state holds, the rows of the archive, and messages."""

from __future__ import annotations

import ctypes
import datetime
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from .._version import __version__
from ..errors import Cancelled, ConfigError, EvictionError, RestkvError, SessionError
from ..native.binding import LIBRARY
from ..paths import shown
from .session_file import SessionFile, write_session
from .session_header import Header, SavedSession, about_of, refused, said
from .state import read_blob, write_blob

# Positions that are copied at a time: one block of the archive's own checksums.
_BLOCK = 64
# Of a state, beside rows, queries and tables: what llama.cpp writes of a cell, and of a context.
_CELL_BYTES, _SPARE_BYTES = 64, 1 << 20


def plain(value: Any) -> Any:
    """What is left of a value in JSON: tuples become lists."""
    return json.loads(json.dumps(value))


# ---- the rows of an archive ----------------------------------------------------------------------


class Rows:
    """The rows of an engine's archive, block by block."""

    def __init__(self, ctx: Any, n_layer: int) -> None:
        self._ctx = ctx
        self.sizes: list[tuple[int, int]] = []  # bytes of a row of K and of V, by layer
        for layer in range(n_layer):
            k, v = ctypes.c_uint64(), ctypes.c_uint64()
            native.check(LIBRARY.restkv_row_bytes(ctx, layer, ctypes.byref(k), ctypes.byref(v)))
            self.sizes.append((k.value, v.value))
        most = max(k + v for k, v in self.sizes)
        self._buffer = bytearray(_BLOCK * most)

    @property
    def row_bytes(self) -> int:
        """Of a position, all layers."""
        return sum(k + v for k, v in self.sizes)

    def _blocks(self, n_rows: int) -> Iterator[tuple[int, int, int]]:
        for first in range(0, n_rows, _BLOCK):
            for layer in range(len(self.sizes)):
                yield layer, first, min(_BLOCK, n_rows - first)

    def _move(self, function: Callable[[Any, Any], int], layer: int, first: int, n: int) -> memoryview:
        """Between the archive and the buffer: keys, then values."""
        k, v = (n * size for size in self.sizes[layer])
        held = (ctypes.c_uint8 * (k + v)).from_buffer(self._buffer)
        at = ctypes.addressof(held)
        native.check(function(self._ctx, ctypes.byref(native.ArchiveRows(layer, first, n, 0, k, v, at, at + k))))
        return memoryview(self._buffer)[: k + v]

    def read(self, n_rows: int) -> Iterator[memoryview]:
        """All rows in pieces, used up one by one."""
        for block in self._blocks(n_rows):
            yield self._move(LIBRARY.restkv_read_rows, *block)

    def write(self, file: SessionFile, n_rows: int, check: Callable[[], None]) -> None:
        """The rows of a session take the place of those that are there."""
        native.check(LIBRARY.restkv_cut_rows(self._ctx, 0))
        blocks = list(self._blocks(n_rows))
        pieces = file.pieces("rows", (n * sum(self.sizes[layer]) for layer, _, n in blocks))
        for block, piece in zip(blocks, pieces, strict=False):
            check()
            self._buffer[: len(piece)] = piece
            self._move(LIBRARY.restkv_write_rows, *block)
        for _ in pieces:  # compares the checksum
            pass
        native.check(LIBRARY.restkv_commit_rows(self._ctx, n_rows))


class _Held:
    """While inside, the caller carries the rows of the archive, if there is one."""

    def __init__(self, engine: Any) -> None:
        self._ctx = engine._ctx.ctx if engine.plan.archive is not None else None

    def __enter__(self) -> None:
        if self._ctx is not None:
            native.check(LIBRARY.restkv_hold_archive(self._ctx, True))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._ctx is not None:
            status = LIBRARY.restkv_hold_archive(self._ctx, False)
            if kind is None:
                native.check(status)


# ---- an engine's session -------------------------------------------------------------------------


def save(engine: Any, path: Path, messages: Sequence[Any], notes: dict[str, Any]) -> SavedSession:
    """See Engine.save_session. Inside a call of the engine."""
    start, archive = time.perf_counter(), engine.plan.archive
    logits = None if engine._requires_eval else engine._last_logits()
    tokens = np.ascontiguousarray(engine.input_ids[: engine.n_tokens], dtype="<i4").tobytes()
    with _Held(engine):
        blob = read_blob(engine._ctx.ctx)
        stats = engine._facts_open.archive
        n_rows = 0 if stats is None else int(stats.n_rows)
        rows = None if stats is None else Rows(engine._ctx.ctx, engine.plan.n_layer)
        header = {
            "made_by": f"restkv-local {__version__}",
            "saved": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "model": shown(engine.plan.model.name),
            "tokens": engine.n_tokens,
            "rows": n_rows,
            "archive": None if archive is None else list(archive.types),
            "evicted": engine._facts_open.position_exact > 0,
            "seed": engine._seed,
            "origin": engine._origin(),
            "messages": list(messages),
            "notes": notes,
        }
        try:
            size = write_session(
                path,
                header,
                {
                    "tokens": (len(tokens), [tokens]),
                    "logits": (0, []) if logits is None else (logits.nbytes, [logits.astype("<f4").tobytes()]),
                    "state": (len(blob), (memoryview(blob)[i : i + (1 << 20)] for i in range(0, len(blob), 1 << 20))),
                    "rows": (0, []) if rows is None else (n_rows * rows.row_bytes, rows.read(n_rows)),
                },
                lambda: _go_on(engine),
            )
        except (TypeError, ValueError, RecursionError) as error:
            if isinstance(error, RestkvError):
                raise
            raise SessionError(f"messages and notes of a session are plain JSON values: {error}") from None
    with SessionFile(path) as file:
        about = about_of(file, Header(file))
    return SavedSession(**{**vars(about), "bytes": size, "seconds": time.perf_counter() - start})


def load(engine: Any, path: Path) -> SavedSession:
    """See Engine.load_session. Inside a call of the engine."""
    start = time.perf_counter()
    with SessionFile(path) as file:
        header = Header(file)
        _check_origin(file.path, header, engine)
        rows = None if engine.plan.archive is None else Rows(engine._ctx.ctx, engine.plan.n_layer)
        _check_lengths(file, header, engine, rows)
        tokens = np.frombuffer(file.read("tokens"), dtype="<i4")
        logits = np.frombuffer(file.read("logits"), dtype="<f4") if file.length("logits") else None
        blob = file.read("state")
        file.verify("rows", lambda: _go_on(engine))
        arch = engine.plan.arch.encode()
        if blob[: 4 + len(arch)] != len(arch).to_bytes(4, "little") + arch:
            raise refused(file.path, "is damaged (its state is of another model): save it again")
        if len(tokens) and not (0 <= int(tokens.min()) and int(tokens.max()) < engine._n_vocab):
            raise refused(file.path, "is damaged (its tokens are not the model's): save it again")
        if header.rows == 0 and rows is not None and header.evicted:
            raise refused(file.path, "is damaged (its archive is empty): save it again")
        _put(engine, file, header, tokens, logits, blob, rows)
        return SavedSession(**{**vars(about_of(file, header)), "seconds": time.perf_counter() - start})


def _go_on(engine: Any) -> None:
    if engine._stop.value:
        raise Cancelled("stopped by cancel()")


def _put(
    engine: Any,
    file: SessionFile,
    header: Header,
    tokens: npt.NDArray[np.int32],
    logits: npt.NDArray[np.float32] | None,
    blob: bytearray,
    rows: Rows | None,
) -> None:
    """The session takes the place of the text; a state that does not fit leaves the text as it was."""
    ctx, facts = engine._ctx.ctx, engine._facts_open
    text = engine._requires_eval, None if engine._requires_eval else engine._last_logits()
    try:
        with _Held(engine):
            before = read_blob(ctx)
            try:
                try:
                    write_blob(ctx, blob)
                    facts.check_positions(header.tokens)
                    if not _fits(facts, header, rows):
                        raise ConfigError("this state is damaged: its cells are not those of its header")
                except BaseException:
                    engine._ctx.kv_cache_seq_rm(-1, 0, -1)
                    write_blob(ctx, before)
                    engine._requires_eval, engine._restored = text
                    raise
            except (ConfigError, EvictionError) as error:
                raise refused(file.path, f"does not fit: {error}") from None
            engine.n_tokens = 0  # from here on nothing is left of the text before
            engine._answer = engine._turn.question = None
            if rows is not None:
                rows.write(file, header.rows, lambda: _go_on(engine))
    except BaseException:
        if engine.n_tokens == 0:
            engine.reset()
        raise
    engine.n_tokens = header.tokens
    engine.input_ids[: header.tokens] = tokens
    engine._seed = header.seed
    engine._restored = None if logits is None else logits.copy()
    engine._requires_eval = logits is None
    facts.forget()


def _fits(facts: Any, header: Header, rows: Rows | None) -> bool:
    """Whether the cells that were loaded are those that the header speaks of."""
    exact = facts.position_exact
    held = rows is None or exact <= header.rows <= facts.positions
    return bool(held and header.evicted == (exact > 0))


def _check_lengths(file: SessionFile, header: Header, engine: Any, rows: Rows | None) -> None:
    """Before anything is read: no section is longer than this engine can hold."""
    memory = engine._facts_open.memory
    most = sum(each.kv_bytes + each.other_bytes + each.ring_bytes + each.table_bytes for each in memory)
    most += _CELL_BYTES * (engine.plan.context + engine.plan.capacity) + _SPARE_BYTES
    fits = {
        "tokens": file.length("tokens") == 4 * header.tokens,
        "logits": file.length("logits") in (0, 4 * engine._n_vocab),
        "state": 0 < file.length("state") <= most,
        "rows": header.rows <= engine._n_ctx
        and file.length("rows") == (0 if rows is None else header.rows * rows.row_bytes),
    }
    for name, right in fits.items():
        if not right:
            raise refused(file.path, f"is damaged (its section '{name}' has another length): save it again")


# ---- another model, other settings ---------------------------------------------------------------


def _check_origin(path: Path, header: Header, engine: Any) -> None:
    """Refuse a session of another model or of settings that this engine cannot go on with; says which to take."""
    here, there = plain(engine._origin()), header.origin
    loose = not header.evicted and engine.plan.allocation == "uniform"  # all of the text is in the cells
    for name, value in here.items():
        if name == "capacity" or (loose and name in ("budget", "window")) or there.get(name) == value:
            continue
        old = said(there.get(name))
        if name in ("model", "fingerprint", "lora", "kv_overrides"):
            raise refused(path, f"was saved with another model ({header.model}, {name} {old}; this engine "
                                f"has {value}): open it with that model")  # fmt: skip
        raise refused(path, f"was saved with {name} {old} and this engine has {value}: open it with "
                            f"{name} {old}")  # fmt: skip
    if header.tokens > engine._n_ctx:
        raise refused(path, f"holds {header.tokens} tokens and this engine has room for {engine._n_ctx}: open it with "
                            f"a context of {header.tokens + 1} or more")  # fmt: skip
    least = header.tokens if loose else there.get("capacity")
    if type(least) is not int or least > engine.plan.capacity:
        raise refused(path, f"needs {said(least)} cells and this engine has {engine.plan.capacity}: open it with "
                            f"budget and reserve of {said(least)} together")  # fmt: skip
    archive = engine.plan.archive
    if header.archive is None and archive is not None and header.evicted:
        raise refused(path, "was saved without an archive and this engine has one: open it with archive 'none'")
    if header.archive is not None and archive is None and (header.evicted or header.rows):
        raise refused(path, "was saved with an archive and this engine has none: open it with archive 'ram' or 'file'")
    if header.archive is not None and archive is not None and header.archive != list(archive.types):
        raise refused(path, f"has an archive of type {said(header.archive)}, this engine's is {list(archive.types)}: "
                            f"open it with those types of cache and archive")  # fmt: skip
