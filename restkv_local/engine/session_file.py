"""The file of a session: what it holds, in which order, and that it is whole.

    magic, schema, length of the header, SHA-256 of the header
    header    JSON
    sections  one after the other, each with its SHA-256 behind it; their lengths are in the header

A file may come from anywhere. Its size must be the sum of what it names, before anything is made room for, and what it
holds is compared with its checksum before it is looked at. A new one is written beside the old one and put in its place
when it is whole: whenever a process is killed, one of the two is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..config import SESSION_HEADER_MAX
from ..errors import SessionError
from ..paths import shown

try:
    import fcntl
except ImportError:  # Windows: there the part of another process cannot be opened
    fcntl = None  # type: ignore[assignment, unused-ignore]

SCHEMA = 1
SECTIONS = ("tokens", "logits", "state", "rows")
_MAGIC = b"RSTKVSF\n"
_PRELUDE = struct.Struct("<8sII32s")
_SHA = 32
_PIECE = 1 << 20
_AGAIN = "save it again, or read the text again"

Buffer = bytes | bytearray | memoryview


def _refuse(path: Path, why: str) -> SessionError:
    return SessionError(f"the session '{shown(path)}' {why}")


def _system(path: Path, error: OSError, doing: str, remedy: str) -> SessionError:
    return _refuse(path, f"cannot be {doing} ({error.strerror or error}): {remedy}")


# ---- reading -------------------------------------------------------------------------------------


class SessionFile:
    """A session that is open for reading. header: its JSON, an object whose sections fill the file; nothing else of it
    was looked at. Raises SessionError for a file that is none, that is damaged or cut short, or of a newer version."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self.bytes = os.fstat(self._file.fileno()).st_size
            self.header = self._read_header()
            self._at = self._places()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SessionFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def length(self, name: str) -> int:
        """Bytes of a section."""
        return self._at[name][1]

    def read(self, name: str) -> bytearray:
        """A whole section, which is what its checksum says. The caller has looked at its length."""
        data = bytearray()
        for piece in self.pieces(name):
            data += piece
        return data

    def verify(self, name: str, check: Callable[[], None] = lambda: None) -> None:
        """Read a section through and compare its checksum. check: called between pieces, may raise."""
        for _ in self.pieces(name):
            check()

    def pieces(self, name: str, sizes: Iterable[int] | None = None) -> Iterator[memoryview]:
        """A section in pieces, which are used up one by one; behind the last its checksum is compared.

        sizes: of the pieces, together the length of the section; None: any.
        """
        at, length = self._at[name]
        if sizes is None:
            sizes = (min(_PIECE, length - done) for done in range(0, length, _PIECE))
        sha, buffer, done = hashlib.sha256(), bytearray(), 0
        for n in sizes:
            if n > len(buffer):
                buffer = bytearray(n)
            view = memoryview(buffer)[:n]
            self._fill(view, at + done)
            sha.update(view)
            done += n
            yield view
        want = bytearray(_SHA)
        self._fill(memoryview(want), at + length)
        if done != length or sha.digest() != want:
            raise _refuse(self.path, f"is damaged (its section '{name}' does not match its checksum): {_AGAIN}")

    def _fill(self, view: memoryview, at: int) -> None:
        try:
            self._file.seek(at)
            n = 0
            while n < len(view):
                got = self._file.readinto(view[n:])  # type: ignore[attr-defined]
                if not got:
                    raise _refuse(self.path, f"is cut short: {_AGAIN}")
                n += got
        except OSError as error:
            raise _system(self.path, error, "read", "check the disk") from None

    def _read_header(self) -> dict[str, Any]:
        head = bytearray(min(self.bytes, _PRELUDE.size))
        self._fill(memoryview(head), 0)
        if not head or head[: len(_MAGIC)] != _MAGIC[: len(head)]:
            raise _refuse(self.path, "is no session of restkv-local: name another file")
        if len(head) < _PRELUDE.size:
            raise _refuse(self.path, f"is cut short: {_AGAIN}")
        _, schema, length, sha = _PRELUDE.unpack(head)
        if schema != SCHEMA:
            newer = "a newer" if schema > SCHEMA else "another"
            raise _refuse(self.path, f"was saved by {newer} restkv-local (schema {schema}, this one reads {SCHEMA}): "
                                     f"use that version, or read the text again")  # fmt: skip
        if length > min(SESSION_HEADER_MAX, self.bytes - _PRELUDE.size):
            raise _refuse(self.path, f"is cut short or damaged (its header would take {length} bytes): {_AGAIN}")
        text = bytearray(length)
        self._fill(memoryview(text), _PRELUDE.size)
        if hashlib.sha256(text).digest() != sha:
            raise _refuse(self.path, f"is damaged (its header does not match its checksum): {_AGAIN}")
        self._end = _PRELUDE.size + length
        try:
            header = json.loads(bytes(text), parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise _refuse(self.path, f"is damaged (its header is no JSON): {_AGAIN}") from None
        if not isinstance(header, dict):
            raise _refuse(self.path, f"is damaged (its header is no object): {_AGAIN}")
        return header

    def _places(self) -> dict[str, tuple[int, int]]:
        sections = self.header.get("sections")
        if not isinstance(sections, dict) or tuple(sections) != SECTIONS:
            raise _refuse(self.path, f"is damaged (its header names other sections): {_AGAIN}")
        places, at = {}, self._end
        for name, length in sections.items():
            if type(length) is not int or not 0 <= length <= self.bytes:
                raise _refuse(self.path, f"is damaged (its section '{name}' has no length): {_AGAIN}")
            places[name] = at, length
            at += length + _SHA
        if at != self.bytes:
            raise _refuse(self.path, f"is cut short or damaged ({self.bytes} bytes, and its header names {at}): "
                                     f"{_AGAIN}")  # fmt: skip
        return places


def _no_number(name: str) -> None:
    raise ValueError(name)


def _open(path: Path) -> BinaryIO:
    """A regular file; a pipe without a writer would wait forever."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        raise _refuse(path, "does not exist: check its name") from None
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, OSError) else OSError(0, "no name of a file")
        raise _system(path, reason, "read", "check its name and who may read it") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _refuse(path, "is no file: check its name")
    return os.fdopen(fd, "rb", buffering=0)


# ---- writing -------------------------------------------------------------------------------------


def write_session(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    sections: Mapping[str, tuple[int, Iterable[Buffer]]],
    check: Callable[[], None] = lambda: None,
) -> int:
    """Write a session in place of what is there, and return its bytes; a failure leaves what is there.

    sections: of each its length and its pieces. check: called between pieces, may raise. Raises SessionError.
    """
    target = Path(path)
    if "\0" in str(target) or not target.name:
        raise _refuse(target, "cannot be written: that is no name of a file")
    lengths = {name: sections[name][0] for name in SECTIONS}
    text = json.dumps({**header, "sections": lengths}, ensure_ascii=False, allow_nan=False).encode()
    if len(text) > SESSION_HEADER_MAX:
        raise _refuse(target, f"would hold {len(text) >> 20} MiB of messages, and at most "
                              f"{SESSION_HEADER_MAX >> 20} fit: leave some out")  # fmt: skip
    part = target.with_name(f".{target.name}.part")
    try:
        with _part(target, part) as file:
            try:
                file.write(_PRELUDE.pack(_MAGIC, SCHEMA, len(text), hashlib.sha256(text).digest()))
                file.write(text)
                for name in SECTIONS:
                    length, pieces = sections[name]
                    file.write(_write(file, name, length, pieces, check))
                n = file.tell()
                file.flush()
                os.fsync(file.fileno())
                os.replace(part, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(part)
                raise
        _sync_folder(target.parent)
    except OSError as error:
        raise _system(target, error, "written", "free room on its disk, or name another file") from None
    return n


def _write(file: BinaryIO, name: str, length: int, pieces: Iterable[Buffer], check: Callable[[], None]) -> bytes:
    """The pieces of a section; returns their checksum."""
    sha, n = hashlib.sha256(), 0
    for piece in pieces:
        check()
        file.write(piece)
        sha.update(piece)
        n += len(piece)
    if n != length:
        raise SessionError(f"section '{name}' of the session has {n} bytes where {length} were expected: save it again")
    return sha.digest()


@contextlib.contextmanager
def _part(target: Path, part: Path) -> Iterator[BinaryIO]:
    """The file beside a session that becomes it, empty, held by nobody else and for nobody else to read. A part that a
    killed process left is used again."""
    flags = os.O_RDWR | os.O_CREAT
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(part, flags, 0o600), "r+b", buffering=_PIECE) as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(file.fileno()), os.stat(part))
        except OSError:
            mine = False
        if not mine:  # it may be the session itself by now
            raise _refuse(target, "is being saved by another program: wait for it, or choose another name")
        if hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), 0o600)
        file.truncate(0)
        yield file


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too, where folders can be synced."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
