"""Tables of benchmarks/turns/*.jsonl for docs/benchmarks.md: many questions about one text. No number is written by
hand."""

from __future__ import annotations

from ..setup.source import ROOT
from . import quality

FOLDER = ROOT / "benchmarks" / "turns"
_FACTS = "restkv-eval turns --kinds facts --rows full,stream,recall,ceiling --questions 6"
# File -> the command that makes its results. An eighth of a text is in the cells.
COMMANDS: dict[str, str] = {
    "facts-2048": f"{_FACTS} --contexts 2048 --budgets 256 --samples 4",
    # before the next one, whose full cache counts
    "answers-4096": "restkv-eval turns --kinds facts --rows recall --modes kept --questions 6 --contexts 4096 "
    "--budgets 512 --samples 4 --recall-below 0.8",
    "facts-4096": f"{_FACTS} --contexts 4096 --budgets 512 --samples 4",
    "facts-6144": f"{_FACTS} --contexts 6144 --budgets 768 --samples 2",
}


def commands() -> str:
    """Every command that makes a file, and the one that makes it small."""
    lines = []
    for name, command in COMMANDS.items():
        lines.append(f"{command} --out results/{name} --resume")
        lines.append(f"restkv-eval report results/{name} --compact benchmarks/turns/{name}.jsonl")
    return "```sh\n" + "\n".join([*lines, "python3 tools/docs.py"]) + "\n```"


def tables() -> str:
    """The first question and the later ones, for each way to ask; every row by itself is in the results."""
    from restkv_local.eval.report.tables import markdown_tables
    from restkv_local.eval.report.turns import EXPLAINED
    from restkv_local.eval.results import read_results

    files = [path for name in COMMANDS if (path := FOLDER / f"{name}.jsonl").exists()]
    records = read_results(files)
    parts = [part for part in markdown_tables(records) if not part.startswith("<details>") and part != EXPLAINED]
    return "\n\n".join([*parts, EXPLAINED, quality.origin(records)])
