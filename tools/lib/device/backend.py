"""Which backend of ggml to build on this machine, and what is known of its driver without the library."""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Backend -> what CMAKE_ARGS says for it.
SWITCHES = {"cuda": "-DGGML_CUDA=ON", "metal": "", "vulkan": "-DGGML_VULKAN=ON", "cpu": ""}
# Where CUDA's compiler is looked for, behind the PATH.
_VARIABLES = ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT")
_NODES = Path("/dev/dri")
_FOLDERS = ("/usr/local/cuda", "/opt/cuda")


@dataclass(frozen=True)
class Backend:
    """name: of SWITCHES, "library" for one that RESTKV_LIB_PATH names, "here" for what is at hand. cmake_args: of the
    build. why: what was found. environment: variables that the build needs."""

    name: str
    cmake_args: str
    why: str
    environment: Mapping[str, str]


# Nothing is built.
HERE = Backend("here", "", "the interpreter and the library at hand", {})


def choose(asked: str, env: Mapping[str, str], system: str = sys.platform) -> Backend:
    """The backend that was asked for ("auto": by what is found), with the user's own CMAKE_ARGS kept."""
    own = env.get("CMAKE_ARGS", "").strip()
    if asked == "auto" and env.get("RESTKV_LIB_PATH"):
        return Backend("library", own, f"RESTKV_LIB_PATH names {env['RESTKV_LIB_PATH']}", {})
    nvcc, card = _nvcc(env), _first_line(["nvidia-smi", "-L"])
    named = re.search(r"-DGGML_(CUDA|VULKAN)(?::BOOL)?=(?:ON|1|TRUE)", own, re.IGNORECASE)
    if asked != "auto":
        name, why = asked, f"--backend {asked}"
    elif named:
        name, why = named[1].lower(), f"CMAKE_ARGS says {named[0]}"
    elif system == "darwin":
        name, why = "metal", "this is macOS"
    elif nvcc and card:
        name, why = "cuda", f"found {nvcc} and {card}"
    elif _vulkan(env, system):
        name, why = "vulkan", "found glslc, the Vulkan loader and a device for it"
        why += "; for CUDA install its toolkit (nvcc)" if card else ""
    else:
        name = "cpu"
        if card:
            why = f"found {card}, but no nvcc: install the CUDA toolkit, or glslc and the Vulkan headers"
        else:
            why = "found no card" + (f" (but {nvcc})" if nvcc else "")
    switch = SWITCHES[name]
    if name == "cpu" and system == "darwin":
        switch = "-DGGML_METAL=OFF"
    parts = [own] if own else []
    if switch and switch.partition("=")[0] not in own:
        parts.append(switch)
    environment = {"CUDACXX": str(nvcc)} if name == "cuda" and nvcc and not env.get("CUDACXX") else {}
    return Backend(name, " ".join(parts), why, environment)


def driver_facts() -> dict[str, str]:
    """What the system's own tools say, in one line each; what is not there is left out."""
    query = "--query-gpu=name,driver_version,memory.total"
    found = {
        "nvidia_smi": _first_line(["nvidia-smi", query, "--format=csv,noheader"]),
        "nvcc": _last_line([str(_nvcc(os.environ) or "nvcc"), "--version"]),
        "cmake": _first_line(["cmake", "--version"]),
    }
    return {name: text for name, text in found.items() if text}


def _vulkan(env: Mapping[str, str], system: str) -> bool:
    """Whether Vulkan can be built here and is of use. On Linux a GPU has a node in /dev; a software device has none,
    and must be asked for."""
    builds = shutil.which("glslc", path=env.get("PATH")) and ctypes.util.find_library("vulkan")
    return bool(builds) and (system != "linux" or any(_NODES.glob("renderD*")))


def _nvcc(env: Mapping[str, str]) -> Path | None:
    on_path = shutil.which("nvcc", path=env.get("PATH"))
    if on_path:
        return Path(on_path)
    folders = [env[name] for name in _VARIABLES if env.get(name)]
    for folder in [*folders, *_FOLDERS]:
        path = Path(folder, "bin", "nvcc.exe" if os.name == "nt" else "nvcc")
        if path.is_file():
            return path
    return None


def _said(command: list[str]) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _first_line(command: list[str]) -> str:
    # a serial number is not needed to know the card
    return re.sub(r"\s*\(UUID:.*\)", "", "".join(_said(command)[:1]))


def _last_line(command: list[str]) -> str:
    return "".join(_said(command)[-1:])
