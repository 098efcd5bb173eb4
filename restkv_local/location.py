"""Where the patched library is: found without loading anything."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .errors import LibraryError

PATH_VARIABLE = "RESTKV_LIB_PATH"
# Read by llama_cpp, once, when it is imported.
BINDINGS_VARIABLE = "LLAMA_CPP_LIB_PATH"


def library_dir() -> Path:
    """Folder of the patched library: $RESTKV_LIB_PATH, else `lib` inside the package, else that of the installed
    package, which the sources of a checkout shadow.

    Raises LibraryError when no library is there, or when llama_cpp has already been imported with another one.
    """
    folder = _folder()
    if library_file(folder) is None:
        raise LibraryError(
            f"there is no llama library in {folder}: run 'pip install .' in a checkout of restkv-local, "
            f"or point {PATH_VARIABLE} at the folder of a build"
        )
    foreign = _foreign_library(folder)
    if foreign is not None:
        raise LibraryError(
            f"llama_cpp is already imported with {foreign}: import restkv_local before llama_cpp, in a fresh process"
        )
    return folder


def announce() -> None:
    """Tell llama_cpp, which may be imported next, to run on the patched library; without one, do nothing."""
    folder = _folder()
    if library_file(folder) is not None and "llama_cpp.llama_cpp" not in sys.modules:
        os.environ[BINDINGS_VARIABLE] = str(folder)


def library_file(folder: Path) -> Path | None:
    """The library in a folder; None when there is none."""
    names = {"win32": ("llama.dll", "libllama.dll"), "darwin": ("libllama.so", "libllama.dylib")}
    for name in names.get(sys.platform, ("libllama.so",)):
        if (folder / name).exists():
            return folder / name
    return None


def _folder() -> Path:
    named = os.environ.get(PATH_VARIABLE)
    if named:
        return Path(named).absolute()
    own = Path(__file__).absolute().parent / "lib"
    return own if library_file(own) is not None else _installed() or own


def _installed() -> Path | None:
    """`lib` of the installed package when this one is a checkout's."""
    from importlib import metadata  # slow to import, and seldom needed

    try:
        folder = Path(str(metadata.distribution("restkv-local").locate_file("restkv_local/lib"))).absolute()
    except metadata.PackageNotFoundError:
        return None
    return folder if library_file(folder) is not None else None


def _foreign_library(folder: Path) -> str | None:
    """The library that llama_cpp runs on, when that is not the one in `folder`."""
    bindings = sys.modules.get("llama_cpp.llama_cpp")
    loaded = getattr(getattr(bindings, "_lib", None), "_name", None)
    if not isinstance(loaded, str):
        return None
    ours = library_file(folder)
    same = ours is not None and Path(loaded).exists() and os.path.samefile(loaded, ours)
    return None if same else loaded
