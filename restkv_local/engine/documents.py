"""Texts that a user puts before a question: files and standard input."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import RestkvError
from ..paths import shown, typed

STDIN = "-"
# Beyond every context: 16 bytes for each position of the longest cache.
BYTES_MAX = 1 << 28
_CHUNK = 1 << 20

# First bytes of files that are no plain text, and the way to text.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF-", "a PDF", "convert it first, for example with pdftotext"),
    (b"PK\x03\x04", "a zip archive or an office document", "save it as plain text first"),
    (b"\xd0\xcf\x11\xe0", "an old office document", "save it as plain text first"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first with gunzip"),
    (b"GGUF", "a model", "give it with --model"),
    (b"\x89PNG", "an image", "only text can be read"),
    (b"\xff\xd8\xff", "an image", "only text can be read"),
    (b"{\\rtf", "an RTF document", "save it as plain text first"),
    (b"\xff\xfe\0\0", "UTF-32 text", "convert it first with iconv -f UTF-32 -t UTF-8"),  # before UTF-16, alike
    (b"\0\0\xfe\xff", "UTF-32 text", "convert it first with iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "convert it first with iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it first with iconv -f UTF-16 -t UTF-8"),
)


class DocumentError(RestkvError):
    """A document cannot be read as text."""


class EmptyDocument(DocumentError):
    """A document holds nothing but blanks."""


@dataclass(frozen=True)
class Document:
    """name: what the model sees as its title; text: the whole content, lines end in a single newline character."""

    name: str
    text: str


def read_document(path: str) -> Document:
    """Read a UTF-8 file, or standard input for "-". Raises DocumentError with one sentence."""
    if path == STDIN:
        return Document("standard input", _decode("standard input", _read(sys.stdin.buffer, "standard input")))
    file = typed(path)
    if os.path.isdir(file):
        raise DocumentError(f"'{path}' is a directory; give the files in it one by one")
    try:
        with open(file, "rb") as stream:
            data = _read(stream, f"'{path}'")
    except FileNotFoundError:
        raise DocumentError(f"'{path}' does not exist; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DocumentError(f"'{path}' cannot be read: {reason}") from error
    return Document(shown(file.name), _decode(f"'{path}'", data))


def piped() -> bool:
    """Whether standard input is a pipe or a file, so that a text may come from it: no terminal, null device or socket,
    which a program that starts this one may have left open."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no file of the system's
        return not sys.stdin.isatty()
    return stat.S_ISFIFO(kind) or stat.S_ISREG(kind)


def comes(seconds: float) -> bool:
    """Whether standard input has something, or ends, within so many seconds; True where the system cannot tell."""
    try:
        return bool(select.select([sys.stdin.fileno()], [], [], seconds)[0])
    except (OSError, ValueError):
        return True


def user_message(documents: Sequence[Document], question: str) -> str:
    """The content of one user message: documents, then the question.

    The question comes last, because the last positions are the window whose queries choose what is kept.
    """
    parts = [f"Document: {document.name}\n\n{document.text.strip()}" for document in documents]
    return "\n\n".join([*parts, question])


def _read(stream: BinaryIO, name: str) -> bytes:
    """All bytes; stops early at what is no text, so that a device without end is refused too."""
    data = bytearray()
    while chunk := stream.read(_CHUNK):
        if not data:
            _refuse_foreign(name, chunk)
        if b"\0" in chunk:
            raise DocumentError(f"{name} is binary; only UTF-8 text can be read")
        data += chunk
        if len(data) > BYTES_MAX:
            raise DocumentError(f"{name} holds more than {BYTES_MAX >> 20} MiB, beyond any context; give a part of it")
    return bytes(data)


def _refuse_foreign(name: str, head: bytes) -> None:
    for magic, kind, remedy in _FOREIGN:
        if head.startswith(magic):
            raise DocumentError(f"{name} is {kind}; {remedy}")


def _decode(name: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{name} is not UTF-8 text (byte {error.start}); convert it first, for example with iconv"
        ) from error
    if not text.strip():
        raise EmptyDocument(f"{name} is empty; give a text to read")
    return text.replace("\r\n", "\n").replace("\r", "\n")
