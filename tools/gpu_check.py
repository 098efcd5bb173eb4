#!/usr/bin/env python3
"""Check a device: build for it, compare it with the CPU, measure it, and write one file that says it all.

    python3 tools/gpu_check.py [--quick] [--backend NAME | --here] [--json FILE]

It needs what `python3 tools/test.py` needs, and for a GPU the tools of its maker. With --here, for a machine without a
network, nothing is made, built or fetched: the interpreter that runs this needs what the package needs. The file is
what a report of an error should carry. Exit code 0: every step went well. 1: some did not, and the file says which.
"""

import sys

if sys.version_info < (3, 10):
    need = "gpu_check.py: Python 3.10 or newer is needed, this is %d.%d; install a newer python3"
    sys.exit(need % sys.version_info[:2])

import argparse
import datetime
import os
import platform
import shutil
from pathlib import Path

from lib.device import backend, place, steps
from lib.device.run import Run
from lib.setup import venv
from lib.setup.progress import SetupError
from lib.setup.source import ROOT, cache_dir, upstream

FORMAT = 1


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="gpu_check.py", description="Check and measure evictions on this machine's devices; writes one JSON file."
    )
    parser.add_argument("--quick", action="store_true", help="the short version of every step, and no large model")
    parser.add_argument(
        "--backend", choices=["auto", *backend.SWITCHES], default="auto",
        help="what to build (auto: by what is found; the CMAKE_ARGS that are set stay)",
    )  # fmt: skip
    parser.add_argument(
        "--here", action="store_true",
        help="make no environment, build nothing and ask no registry: this interpreter, and the library that it finds "
        "(RESTKV_LIB_PATH, or that of the installed package)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), metavar="FILE",
                        help="where the result goes (gpu-check.json)")  # fmt: skip
    parser.add_argument("--shape", default=None, help="what is measured (restkv-bench shapes --list)")
    parser.add_argument("--layers", type=int, default=None, help="its layers (as many as fit the device and the disk)")
    parser.add_argument("--text", type=int, default=None, metavar="TOKENS", help="length of the text that it reads")
    parser.add_argument("--only", default=None, metavar="STEPS",
                        help=f"some of the steps, by comma: {', '.join(steps.NAMES)}")  # fmt: skip
    found = parser.parse_args(words)
    chosen = found.only.split(",") if found.only else list(steps.NAMES)
    if unknown := [name for name in chosen if name not in steps.NAMES]:
        parser.error(f"there is no step '{unknown[0]}'; known are {', '.join(steps.NAMES)}")
    found.only = chosen
    if found.here and found.backend != "auto":
        parser.error("--backend chooses what is built, and --here builds nothing: give one of them")
    if not found.json.resolve().parent.is_dir():
        parser.error(f"--json: the folder of '{found.json}' does not exist")
    return found


def main(words: list[str]) -> int:
    """Run all steps; returns the exit code."""
    options = arguments(words)
    built = backend.HERE if options.here else backend.choose(options.backend, os.environ)
    # The build reads them, and so does whatever it starts.
    os.environ.update({**built.environment, **({"CMAKE_ARGS": built.cmake_args} if built.cmake_args else {})})
    print(f"backend {built.name}: {built.why}", file=sys.stderr, flush=True)
    now = datetime.datetime.now(datetime.timezone.utc)
    logs = cache_dir() / "logs" / f"gpu-check-{now:%Y%m%d-%H%M%S}-{os.getpid()}"
    facts = {
        "format": FORMAT,
        "date": now.isoformat(timespec="seconds"),
        "backend": {"name": built.name, "why": built.why, "cmake_args": built.cmake_args},
        "llama_cpp_commit": upstream()["commit"],
        "system": platform.platform(),
        "python": platform.python_version(),
        "drivers": backend.driver_facts(),
        "options": {name: value for name, value in vars(options).items() if name != "json"},
        "finished": False,
    }
    programs = place.at_hand() if options.here else place.made()
    run = Run(options.json.resolve(), logs, facts, programs.environment, ROOT)
    try:
        if not options.here:
            run.call("build", lambda: _build(built))
        if run.failed:
            for name in options.only:
                run.skip(name, "nothing was built")
        else:
            steps.all_steps(run, options, programs)
    except KeyboardInterrupt:
        run.finish("stopped by hand")
        print(f"\nstopped; what was done is in {options.json}", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(logs, ignore_errors=True)
    run.finish(steps.verdict(run))
    print(f"\n{run.facts['verdict']}\nThe figures are in {options.json}; attach it to a report of an error.")
    return 1 if run.failed else 0


def _build(built: backend.Backend) -> tuple[bool, str, str, object]:
    """The environment of the tests with a library of this backend."""
    try:
        venv.ensure(tests=True)
    except SetupError as error:
        log = Path(str(error).rpartition("The log is ")[2])
        tail = log.read_text(errors="replace").splitlines()[-40:] if log.is_file() else []
        return False, "", str(error), {"log": tail}
    return True, built.cmake_args or "no switches", "", {"cmake_args": built.cmake_args}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
