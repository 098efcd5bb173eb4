"""Shared by all tests: no user file is touched, the embedded model, versions in the header of the report."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Last, so that an installed package and the standard library's `test` win.
sys.path += [str(ROOT), str(ROOT / "tools"), str(ROOT / "tests" / "support")]

from lib.setup import source  # noqa: E402

# Where the build keeps its source; the tests themselves get another cache.
BUILD_CACHE = source.cache_dir()
_HOME = pytest.StashKey[str]()
# Folders that platformdirs and we ask for.
_VARIABLES = ("RESTKV_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")


def pytest_configure(config: pytest.Config) -> None:
    """Point caches, settings and histories at a folder that goes away, also for the programs that tests start."""
    # A shell's job in the background ignores Ctrl-C, and so would the programs that tests start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    home = tempfile.mkdtemp(prefix="restkv-tests-")
    config.stash[_HOME] = home
    for name in _VARIABLES:
        os.environ[name] = str(Path(home, name.lower()))
    if sys.platform == "darwin":
        os.environ["HOME"] = home


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove that folder."""
    if _HOME in config.stash:
        shutil.rmtree(config.stash[_HOME], ignore_errors=True)


def pytest_report_header() -> list[str]:
    """What a report of a failure must name."""
    names = ("llama_cpp_python", "numpy", "numba", "torch", "gguf", "hypothesis")
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    pin = source.upstream()
    import restkv_local

    library = os.environ.get("RESTKV_LIB_PATH", "its own")
    return [
        f"restkv_local: {Path(restkv_local.__file__ or '').parent}, library: {library}",
        f"llama.cpp {pin['commit']}, {', '.join(found)}, {os.cpu_count()} cores",
    ]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded model."""
    from restkv_local.models.files import embedded_path

    return embedded_path()


@pytest.fixture(scope="session")
def sdist() -> Path:
    """The pinned source archive, from the cache that the build filled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESTKV_CACHE", str(BUILD_CACHE))
        return source.fetch()


@pytest.fixture(scope="session")
def build_cache() -> Path:
    """The cache of the builds, for tests that compile: their objects are used again by the next run."""
    return BUILD_CACHE


@pytest.fixture(scope="session")
def native() -> None:
    """Skip without the patched library and the embedded model, unless they are demanded."""
    from restkv_local.errors import RestkvError

    try:
        from restkv_local import native
        from restkv_local.models import files as models

        native.lib()
        models.resolve(None)
    except (ImportError, RestkvError) as error:
        if os.environ.get("RESTKV_REQUIRE_NATIVE") == "1":
            raise
        pytest.skip(f"needs the native library and the embedded model: {error}")
