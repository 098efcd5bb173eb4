"""The patched llama.cpp library: loading it, and its errors.

Importing this module loads nothing; `lib()` does, once.
"""

from __future__ import annotations

import ctypes as C
import functools
import os
import sys
from typing import NamedTuple

from ..errors import ArchiveError, ConfigError, EvictionError, LibraryError, ModelError
from ..location import BINDINGS_VARIABLE, PATH_VARIABLE, library_dir, library_file
from .structs import (
    ABI_VERSION,
    ARCHIVE,
    GONE,
    INVALID,
    IO,
    NO_MEMORY,
    NOTHING,
    OK,
    SIGNATURES,
    STATE,
    UNSUPPORTED,
)

_ERRORS: dict[int, type[Exception]] = {
    INVALID: ConfigError,
    UNSUPPORTED: ModelError,
    IO: ModelError,
    NO_MEMORY: EvictionError,
    GONE: EvictionError,
    STATE: ConfigError,
    ARCHIVE: ArchiveError,
}


@functools.cache
def lib() -> C.CDLL:
    """The patched library, loaded once, every function of restkv.h with its types.

    Sets LLAMA_CPP_LIB_PATH, so that llama_cpp uses the same library. Raises LibraryError when the library is missing,
    stock or of another version.
    """
    folder = library_dir()
    path = library_file(folder)
    if sys.platform == "win32":
        os.add_dll_directory(str(folder))
    try:
        library = C.CDLL(str(path))
        version_of = library.restkv_abi_version
    except AttributeError:
        raise LibraryError(
            f"{path} is a stock llama.cpp without eviction: run 'pip install .' in a checkout of restkv-local"
        ) from None
    except OSError as error:
        raise LibraryError(f"{path} cannot be loaded ({error}): run 'pip install .' again on this machine") from None
    version_of.restype, version_of.argtypes = SIGNATURES["restkv_abi_version"]
    version = version_of()
    if version != ABI_VERSION:
        raise LibraryError(
            f"{path} has interface version {version}, this package needs {ABI_VERSION}: run 'pip install .' again"
        )
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise LibraryError(
                f"{path} is older than this package (it has no {name}): run 'pip install .' again, "
                f"or point {PATH_VARIABLE} at the folder of a newer build"
            )
        function.restype, function.argtypes = result, arguments
    os.environ[BINDINGS_VARIABLE] = str(folder)
    return library


def check(status: int) -> None:
    """Raise the typed error of the restkv_status that a call has just returned, with the library's own sentence.

    NOTHING (the cache is within its budget) is not an error: callers that can meet it look at the status.
    """
    if status in (OK, NOTHING):
        return
    failed = failure()
    reason = failed.reason if failed is not None and failed.status == status else ""
    raise error_type(status)(reason or f"the native library failed with status {status}")


class Failure(NamedTuple):
    """The last failure on this thread: a restkv_status and the library's sentence."""

    status: int
    reason: str


def failure() -> Failure | None:
    """What went wrong in the last call, or since forget_failure(); None when nothing did."""
    status = lib().restkv_last_status()
    return None if status == OK else Failure(status, lib().restkv_last_error().decode("utf-8", "replace"))


def forget_failure() -> None:
    """Before a call of llama.cpp in which the cache may fail: what failure() gives afterwards is of that call."""
    lib().restkv_clear_error()


def error_type(status: int) -> type[Exception]:
    """The exception that stands for a restkv_status."""
    return _ERRORS.get(status, EvictionError)


def methods() -> list[tuple[str, str]]:
    """Name and one-line summary of every method that the library knows."""
    library = lib()
    return [
        (library.restkv_method_name(i).decode(), library.restkv_method_summary(i).decode())
        for i in range(library.restkv_method_count())
    ]
