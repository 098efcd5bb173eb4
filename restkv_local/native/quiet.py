"""What llama.cpp says goes to Python logging ("restkv_local.llama"), never to stdout or stderr: warnings and errors at
their level, all else at DEBUG, so that a program that logs at INFO is not told about every tensor.

llama-cpp-python silences llama.cpp by pointing the file descriptors 1 and 2 of the whole process at the null device
while a model loads; a host program loses its own output meanwhile. A log callback does the same without that.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
import threading
from collections.abc import Iterator

LOGGER = logging.getLogger("restkv_local.llama")
# Without a handler of its own, Python would print warnings to stderr as a last resort.
logging.getLogger("restkv_local").addHandler(logging.NullHandler())

# enum ggml_log_level of ggml.h: none, debug, info, warn, error; 5 continues the line before.
_LEVELS = {3: logging.WARNING, 4: logging.ERROR}
_CONTINUES = 5

_Callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _Thread(threading.local):
    level: int = logging.DEBUG
    line: str = ""
    captured: list[str] | None = None


_thread = _Thread()


def _on_log(level: int, text: bytes | None, _user_data: object) -> None:
    if not text:
        return
    if level != _CONTINUES:
        _flush()
        _thread.level = _LEVELS.get(level, logging.DEBUG)
    _thread.line += text.decode("utf-8", errors="replace")
    if _thread.line.endswith("\n"):
        _flush()


def _flush() -> None:
    line, _thread.line = _thread.line.strip(), ""
    if not line or line.strip(".") == "":  # dots are llama.cpp's progress bar
        return
    if _thread.captured is not None and _thread.level >= logging.WARNING:
        _thread.captured.append(line)
    LOGGER.log(_thread.level, "%s", line)


_callback = _Callback(_on_log)


def install(library: ctypes.CDLL) -> None:
    """Send the log of a llama.cpp library to Python logging, for the whole process."""
    library.llama_log_set(_callback, None)


def show(level: int = logging.DEBUG) -> None:
    """Print llama.cpp's log on stderr (for `verbose=True`); a second call changes only the level."""
    LOGGER.setLevel(level)
    if not any(isinstance(handler, logging.StreamHandler) for handler in LOGGER.handlers):
        LOGGER.addHandler(logging.StreamHandler(sys.stderr))


@contextlib.contextmanager
def capture() -> Iterator[list[str]]:
    """Collect the warnings and errors that llama.cpp logs on this thread inside the block, one line each."""
    before, _thread.captured = _thread.captured, []
    try:
        yield _thread.captured
    finally:
        _flush()
        _thread.captured = before
