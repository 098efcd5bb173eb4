"""Tables of benchmarks/turns/*.jsonl for docs/benchmarks.md: many questions about one text. No number is written by
hand."""

from __future__ import annotations

from collections.abc import Callable

from ..setup.source import ROOT
from . import quality

FOLDER = ROOT / "benchmarks" / "turns"
_FACTS = "restkv-eval turns --kinds facts --questions 6"
_ROWS = "full,stream,recall,ceiling"
_ALL = "paraphrased,pairs,affixes,tracing,extremes,functions,mixed,list"
_GEMMA = "--model gemma-3-270m-q4_k_m.gguf --raw"
_VALUES = "restkv:indicator=attention-value-norm"
# Block -> file -> the command that makes its results. Of texts for SmolLM2 an eighth is in the cells.
COMMANDS: dict[str, dict[str, str]] = {
    "turns": {
        "facts-2048": f"{_FACTS} --rows {_ROWS} --contexts 2048 --budgets 256 --samples 4",
        "facts-4096": f"{_FACTS} --rows {_ROWS} --contexts 4096 --budgets 512 --samples 4",
        "facts-6144": f"{_FACTS} --rows {_ROWS} --contexts 6144 --budgets 768 --samples 2",
    },
    "turns answers": {
        "answers-4096": (
            f"{_FACTS} --rows recall,ceiling --modes kept --contexts 4096 --budgets 512 --samples 4 --recall-below 0.8"
        ),
        "answers-6144": (
            f"{_FACTS} --rows recall,ceiling --modes kept --contexts 6144 --budgets 768 --samples 2 --recall-below 0.8"
        ),
    },
    "turns gemma": {
        "gemma-16384": f"{_FACTS} {_GEMMA} --rows {_ROWS} --contexts 16384 --budgets 1024 --samples 2",
        "gemma-30000": f"{_FACTS} {_GEMMA} --rows full,recall,ceiling --contexts 30000 --budgets 1024 --samples 1",
    },
    "turns kinds": {
        "kinds-2048": (
            f"restkv-eval turns --kinds {_ALL} --questions 6 --modes kept --rows {_ROWS} --contexts 2048 --budgets 256 "
            f"--samples 1"
        ),
    },
    "turns in torch": {
        "torch-2048": f"{_FACTS} --rows full,recall,ceiling,attended,pages --contexts 2048 --budgets 256 --samples 1",
    },
    "turns largest row": {
        "largest-2048": (
            f"{_FACTS} --rows full,stream --contexts 2048 --budgets 256 --samples 2 "
            f"--methods restkv,{_VALUES},{_VALUES}:rows=max:reduce=max"
        ),
    },
}


def commands() -> str:
    """Every command that makes a file, and the one that makes it small."""
    lines = []
    for name, command in (pair for files in COMMANDS.values() for pair in files.items()):
        lines.append(f"{command} --out results/{name} --resume")
        lines.append(f"restkv-eval report results/{name} --compact benchmarks/turns/{name}.jsonl")
    return "```sh\n" + "\n".join([*lines, "python3 tools/docs.py"]) + "\n```"


def block(name: str) -> Callable[[], str]:
    """The first question and the later ones, for each way to ask; every row by itself is in the results."""

    def made() -> str:
        from restkv_local.eval.report.tables import markdown_tables
        from restkv_local.eval.report.turns import EXPLAINED
        from restkv_local.eval.results import read_results

        records = read_results([FOLDER / f"{file}.jsonl" for file in COMMANDS[name]])
        parts = [part for part in markdown_tables(records) if not part.startswith("<details>") and part != EXPLAINED]
        return "\n\n".join([*parts, EXPLAINED, quality.origin(records)])

    return made
