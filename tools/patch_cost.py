#!/usr/bin/env python3
"""What the patch costs while nothing evicts: the pinned llama.cpp as it is against the patched one, in pairs.

    python3 tools/patch_cost.py [--pairs N] [--gpu-layers N] [--threads N] [--model FILE] [--json FILE]

It needs what `python3 tools/test.py` needs, and builds llama.cpp a second time, without the series, with the same
CMAKE_ARGS. Exit code 0: measured, and the graphs are the same. 1: they are not.
"""

import sys

if sys.version_info < (3, 10):
    need = "patch_cost.py: Python 3.10 or newer is needed, this is %d.%d; install a newer python3"
    sys.exit(need % sys.version_info[:2])

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
from pathlib import Path
from typing import Any

from lib.setup import venv
from lib.setup.progress import SetupError
from lib.setup.source import ROOT, SourceError, cache_dir, fetch, lock, unpack, upstream

_CHILD = ROOT / "tools" / "lib" / "device" / "patch_cost.py"
# As native/CMakeLists.txt builds the patched one.
_OFF = ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")
_FIGURES = ("decode_ms", "prefill_ms")


def stock_library() -> Path:
    """Folder of an unpatched libllama, built once per switches. Raises SetupError or SourceError."""
    pin = upstream()
    tree = cache_dir() / "src" / f"llama.cpp-{pin['commit']}-stock"
    with lock(tree.parent / ".lock"):
        if not tree.is_dir():
            unpack(fetch(), tree, pin["folder"])
    build = venv.build_folder(f"stock-{pin['commit']}")
    env = venv.environment(PATH=os.pathsep.join([str(venv.python().parent), os.environ.get("PATH", os.defpath)]))
    switches = [f"-DLLAMA_BUILD_{name}=OFF" for name in _OFF]
    switches += ["-DLLAMA_OPENSSL=OFF", "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_TYPE=Release"]
    switches += ["-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN"]
    switches += [f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={ROOT / 'native' / 'amx.cmake'}"]
    switches += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    for words in (
        ["-S", str(tree), "-B", str(build), "-G", "Ninja", *switches],
        ["--build", str(build), "--target", "llama"],
    ):
        done = subprocess.run([str(venv.script("cmake")), *words], env=env, capture_output=True, text=True)
        if done.returncode:
            raise SetupError(f"the unpatched llama.cpp does not build:\n{(done.stdout + done.stderr)[-4000:]}")
    return build / "bin"


def measure(library: str, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one process with a library; "" is the patched one. Raises SetupError."""
    words = [str(venv.python()), str(_CHILD), str(options.gpu_layers), str(options.threads), options.model or ""]
    env = venv.environment(**({"LLAMA_CPP_LIB_PATH": library} if library else {}))
    done = subprocess.run(words, env=env, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SetupError(f"a measurement failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Pairs of processes, who comes first in turn; ratios above 1: the patched library is faster."""
    stock = str(stock_library())
    pairs = []
    for i in range(options.pairs):
        print(f"pair {i + 1} of {options.pairs}", file=sys.stderr, flush=True)
        libraries = ("", stock) if i % 2 == 0 else (stock, "")
        pairs.append({"stock" if library else "patched": measure(library, options) for library in libraries})
    same = all(pair["patched"]["graphs"] == pair["stock"]["graphs"] for pair in pairs)
    result: dict[str, Any] = {"same_graphs": same}
    for name in _FIGURES:
        ratios = [pair["stock"][name] / pair["patched"][name] for pair in pairs]
        result[name] = statistics.median(pair["patched"][name] for pair in pairs)
        result[f"stock_{name}"] = statistics.median(pair["stock"][name] for pair in pairs)
        ratio = f"{name.partition('_')[0]}_ratio"
        result |= {ratio: statistics.median(ratios), f"{ratio}_min": min(ratios), f"{ratio}_max": max(ratios)}
    return result | {
        "graphs": pairs[0]["patched"]["graphs"],
        "device": pairs[0]["patched"]["device"],
        "model": pairs[0]["patched"]["model"],
        "settings": {"pairs": options.pairs, "gpu_layers": options.gpu_layers, "threads": options.threads},
        "llama_cpp_commit": upstream()["commit"],
        "system": platform.platform(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def main(words: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="patch_cost.py", description="What the patch costs while nothing evicts.")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of processes (5)")
    parser.add_argument("--gpu-layers", type=int, default=0, help="layers on the GPU (0); -1: all")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of the CPU (all)")
    parser.add_argument("--model", default=None, help="a GGUF file (the embedded model)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="where the figures go")
    options = parser.parse_args(words)
    if options.pairs < 1 or options.threads < 1:
        parser.error("--pairs and --threads start at 1")
    if options.model and not Path(options.model).is_file():
        parser.error(f"--model: there is no file '{options.model}'")
    try:
        venv.ensure(tests=False)
        result = compare(options)
    except (SetupError, SourceError) as error:
        sys.exit(f"patch_cost.py: {error}")
    for name in ("decode", "prefill"):
        low, high = result[f"{name}_ratio_min"], result[f"{name}_ratio_max"]
        print(f"{name}: {result[f'{name}_ms']:.2f} ms, stock {result[f'stock_{name}_ms']:.2f} ms, "
              f"ratio {result[f'{name}_ratio']:.3f} ({low:.3f} to {high:.3f})")  # fmt: skip
    same = result["same_graphs"]
    print("graphs: the same, node by node" if same else "graphs: they differ")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
