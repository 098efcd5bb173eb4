"""The pinned llama.cpp source: fetched through pip, checked, unpacked, patched and verified, outside the repository."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .patch import PatchError, apply_patch

ROOT = Path(__file__).resolve().parents[3]
PATCHES = ROOT / "patches"

# Left by a finished patch run; names the series and the bytes of every file that it touched.
STAMP = ".restkv-patched.json"
# Every file that the series changes calls into our sources, so each of them holds this word.
MARKER = "restkv"
# Of the vendored tree only what the library is built from: the rest is 130 MB of documents, vocabularies and programs.
_SKIP = frozenset({"docs", "models", "tools", "examples", "tests", "media", "benches", "app", "conversion", "gguf-py"})


class SourceError(Exception):
    """The source cannot be fetched, is not the pinned one, or does not take the series."""


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and no entry in the list of users
        sys.exit("no home folder is known, where sources and builds go; set RESTKV_CACHE to a folder for them")


def cache_dir() -> Path:
    """Folder for sources and builds: $RESTKV_CACHE, else the platform's cache folder. Safe to delete at any time."""
    if os.environ.get("RESTKV_CACHE"):
        return Path(os.environ["RESTKV_CACHE"]).expanduser().resolve()
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "restkv-local"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local") / "restkv-local" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "restkv-local"


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a file lock, so that two runs do not write the same folder. Where there are no locks, go on without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def upstream(patches: Path = PATCHES) -> dict[str, str]:
    """The pin: package, version, sha256 of the sdist, folder of llama.cpp inside it, and its commit."""
    pin = {}
    for line in (patches / "UPSTREAM").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            key, _, value = line.partition("=")
            pin[key.strip()] = value.strip()
    missing = {"package", "version", "sha256", "folder", "commit"} - pin.keys()
    if missing:
        raise SourceError(f"patches/UPSTREAM lacks {', '.join(sorted(missing))}; restore it from version control")
    return pin


def series(patches: Path = PATCHES) -> list[Path]:
    """The patches in the order in which they apply."""
    return sorted(patches.glob("[0-9][0-9][0-9][0-9]-*.patch"))


def series_key(patches: Path = PATCHES) -> str:
    """Hash of the pin, the series and the code that applies it: names a patched tree."""
    here = Path(__file__).resolve()
    digest = hashlib.sha256()
    for path in [patches / "UPSTREAM", *series(patches), here.with_name("patch.py"), here]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch(patches: Path = PATCHES) -> Path:
    """The sdist that holds llama.cpp, from $RESTKV_SDIST, the cache, or pip; its sha256 is always checked."""
    pin = upstream(patches)
    local = os.environ.get("RESTKV_SDIST")
    path = Path(local) if local else cache_dir() / "sdist" / f"{pin['sha256'][:16]}.tar.gz"
    if local and not path.is_file():
        raise SourceError(f"RESTKV_SDIST names {local}, which is not a file")
    if not local and not path.is_file():
        _download(pin, path)
    found = _sha256(path)
    if found != pin["sha256"]:
        if not local:
            path.unlink()
        raise SourceError(
            f"{path.name} is not the pinned source (sha256 {found[:16]}..., expected {pin['sha256'][:16]}...); "
            + ("point RESTKV_SDIST at the right file" if local else "run this again to download it anew")
        )
    return path


def _download(pin: dict[str, str], path: Path) -> None:
    """Fetch the sdist with pip, which honours the user's index, proxy and certificates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        if path.is_file():
            return
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", pin["package"]]
        command += ["--disable-pip-version-check", "-d", folder]
        # pip reads the metadata of an sdist by running its backend; when that is here already, no other is fetched.
        if subprocess.run([sys.executable, "-c", "import scikit_build_core"], capture_output=True).returncode == 0:
            command.append("--no-build-isolation")
        done = subprocess.run([*command, f"{pin['package']}=={pin['version']}"], capture_output=True, text=True)
        files = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or len(files) != 1:
            sys.stderr.write(done.stdout + done.stderr)
            raise SourceError(
                f"pip could not download {pin['package']} {pin['version']}: check the network or the proxy, "
                "or point RESTKV_SDIST at a copy of its source archive"
            )
        files[0].replace(path)


def unpack(sdist: Path, target: Path, folder: str) -> None:
    """Unpack the llama.cpp inside the sdist into target, which must not exist."""
    target.mkdir(parents=True)
    prefix = PurePosixPath(folder).parts
    with tarfile.open(sdist) as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts[1:]
            inner = parts[len(prefix) :]
            if parts[: len(prefix)] != prefix or not inner or inner[0] in _SKIP or inner[0].startswith("."):
                continue
            if ".." in inner:
                raise SourceError(f"{sdist.name} holds the unsafe path {member.name}; do not use this file")
            path = target.joinpath(*inner)
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                path.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                if source is None:
                    raise SourceError(f"{sdist.name} is damaged at {member.name}; download it again")
                with source, path.open("wb") as out:
                    shutil.copyfileobj(source, out)
                path.chmod(0o755 if member.mode & 0o100 else 0o644)
                os.utime(path, (member.mtime, member.mtime))
    if not (target / "CMakeLists.txt").is_file():
        raise SourceError(f"{sdist.name} holds no {folder}; check `folder` in patches/UPSTREAM")


def apply(tree: Path, patches: Path = PATCHES) -> bool:
    """Apply the series to a tree. True when it did, False when the tree holds exactly this series already."""
    if (tree / STAMP).exists():
        verify(tree, patches)
        return False
    if not series(patches):
        raise SourceError(f"{patches} holds no patch, and without the series there is nothing to build; restore it")
    touched: set[str] = set()
    for patch in series(patches):
        try:
            touched |= set(apply_patch(patch.read_text(encoding="utf-8"), patch.name, tree))
        except PatchError as err:
            raise SourceError(
                f"{err}; rebase the series with `python3 tools/patches.py checkout`, then `refresh`"
            ) from err
    files = {name: _sha256(tree / name) for name in sorted(touched)}
    (tree / STAMP).write_text(json.dumps({"key": series_key(patches), "files": files}, indent=1), encoding="utf-8")
    verify(tree, patches)
    return True


def verify(tree: Path, patches: Path = PATCHES) -> None:
    """Raise SourceError unless the tree holds this series, whole and unchanged."""
    if not (tree / STAMP).is_file():
        raise SourceError(f"{tree} is not patched; run `python3 tools/patches.py apply {tree}`")
    stamp = json.loads((tree / STAMP).read_text(encoding="utf-8"))
    if stamp["key"] != series_key(patches):
        raise SourceError(f"{tree} holds another version of the series; delete it and run this again")
    for name, digest in stamp["files"].items():
        if not (tree / name).is_file() or _sha256(tree / name) != digest:
            raise SourceError(f"{name} in {tree} was changed after the series; delete the folder and run this again")
        if MARKER not in (tree / name).read_text(encoding="utf-8"):
            raise SourceError(f"{name} is patched but holds no call of ours ('{MARKER}'): the series is damaged")


def prepare(patches: Path = PATCHES) -> Path:
    """The patched tree in the cache, made when it is not there. Raises SourceError; never returns a stock tree."""
    tree = cache_dir() / "src" / f"llama.cpp-{upstream(patches)['commit']}-{series_key(patches)}"
    with lock(tree.parent / ".lock"):
        if not tree.is_dir():
            sdist = fetch(patches)
            folder = Path(tempfile.mkdtemp(dir=tree.parent, prefix=".new-"))
            try:
                unpack(sdist, folder / "tree", upstream(patches)["folder"])
                apply(folder / "tree", patches)
                (folder / "tree").replace(tree)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        verify(tree, patches)
    return tree
