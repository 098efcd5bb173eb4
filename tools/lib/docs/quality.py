"""Tables of benchmarks/quality/*.jsonl: for docs/quality.md how ReST-KV stands among its like and the main grids, for
docs/quality-grids.md all that `restkv-eval report` makes of them. No number is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..setup.source import ROOT

if TYPE_CHECKING:
    from restkv_local.eval.results import Record
    from restkv_local.eval.summary import Row

FOLDER = ROOT / "benchmarks" / "quality"
OURS = "restkv"
# Of a kind of needle or a task that the full cache itself answers less often, nothing can be lost.
ABLE = 0.5
# Real texts, in the public domain: a novel, a play and the proceedings of a workshop, of the Canterbury corpus. The
# source archive of the package brotli carries them.
_FILES = ("alice29.txt", "asyoulik.txt", "lcet10.txt")
TEXTS = (
    "python3 -m pip download --no-deps --no-binary brotli --dest results brotli==1.2.1",
    "tar xzf results/brotli-1.2.1.tar.gz -C results --strip-components 3 "
    + " ".join(f"brotli-1.2.1/tests/testdata/{name}" for name in _FILES),
)
_REAL = " ".join(f"--text results/{name}" for name in _FILES)
_LONG = " ".join(f"--text results/{name}" for name in (_FILES[0], _FILES[2]))
_FIDELITY = f"restkv-eval fidelity {_REAL} --kinds code --contexts 2048"
# Of ReST-KV, each with one option that is not its default. The widest window comes first: its reading serves all.
_PARTS = (
    "restkv:window=64,restkv,restkv:indicator=attention,restkv:indicator=attention-value-norm,restkv:use_wo=False,"
    "restkv:rows=mean,restkv:rows=last,restkv:pooling=none,restkv:pooling=avgpool,restkv:pooling=maxpool,"
    "restkv:kernel=5,restkv:kernel=11,restkv:kernel=41,restkv:window=16,restkv:reduce=max,restkv:metric_mode=before,"
    "restkv:alpha=0.1,restkv:alpha=none,restkv:window=64:rows=mean"
)
_SHARED_OUT = ",".join(
    method + allocation
    for method in ("restkv", "snapkv")
    for allocation in ("", ":allocation=pyramid", ":allocation=ada")
)
# File -> the command that makes its results. Each goes on where it was stopped.
COMMANDS: dict[str, str] = {
    "niah": "restkv-eval niah --contexts 2048,4096 --budgets 256,1024 --methods all",
    "fidelity": f"{_FIDELITY} --budgets 64,128,256,512,1024 --methods all --seeds 0,1,2 --samples 1",
    "generated": (
        "restkv-eval fidelity --kinds prose,code,dialogue --contexts 2048 --budgets 128,512 --methods all "
        "--seeds 0,1,2 --samples 1"
    ),
    "allocation": f"{_FIDELITY} --budgets 128,512 --methods {_SHARED_OUT} --seeds 0 --samples 1",
    "ablation": f"{_FIDELITY} --budgets 128,512 --methods {_PARTS} --seeds 0,1,2 --samples 1",
    "needle-budgets": (
        "restkv-eval niah --kinds passkey,sentence --contexts 2048 --budgets 128,512 --methods all"
    ),
    "needle-ablation": (
        f"restkv-eval niah --kinds passkey,sentence --contexts 2048 --budgets 128 "
        f"--methods {_PARTS},snapkv,snapkv:kernel=21"
    ),
    "prefill": (
        "restkv-eval niah --kinds passkey,sentence --contexts 2048 --budgets 256 --methods restkv,snapkv,streamingllm "
        "--prefill exact,guided,stream"
    ),
    "ruler": (
        "restkv-eval ruler --contexts 1024 --budgets 256 --prefill exact --methods restkv,snapkv,tova,streamingllm "
        "--samples 2"
    ),
    "long": (
        f"restkv-eval fidelity {_LONG} --contexts 8192 --budgets 256,1024 --methods restkv,snapkv,tova,streamingllm "
        "--samples 1"
    ),
}


def commands() -> str:
    """Every command that makes a file, and the one that makes it small; before them, those that fetch the texts."""
    lines = list(TEXTS)
    for name, command in COMMANDS.items():
        lines.append(f"{command} --out results/{name} --resume")
        lines.append(f"restkv-eval report results/{name} --compact benchmarks/quality/{name}.jsonl")
    lines.append("python3 tools/docs.py")
    return "```sh\n" + "\n".join(lines) + "\n```"


def reading() -> str:
    """What the tables say."""
    from restkv_local.eval.report.tables import CONVENTION, how_to_read

    return f"{CONVENTION}\n\n{how_to_read()}"


def block(name: str) -> Callable[[], str]:
    """The tables of one file, with where they come from."""

    def made() -> str:
        from restkv_local.eval.report.tables import markdown_tables

        records = load(name)
        if not records:
            return missing(name)
        return "\n\n".join([*markdown_tables(records), origin(records)])

    return made


def in_short() -> str:
    """The first grid, of all kinds together by the main figure, of the files that the conclusions rest on."""
    from restkv_local.eval.report.tables import markdown_tables

    parts = []
    for name, label in (("fidelity", "Fidelity"), ("needle-budgets", "Pass key and sentence")):
        records = load(name)
        # Behind the heading of the task.
        parts.append(f"{label}: {markdown_tables(records)[1]}" if records else missing(name))
    return "\n\n".join(parts)


def load(name: str) -> list[Record]:
    """The records of a file, none when it was never measured."""
    from restkv_local.eval.results import read_results

    path = FOLDER / f"{name}.jsonl"
    return read_results([path]) if path.exists() else []


def origin(records: Sequence[Record]) -> str:
    """Machine, versions, threads and days of some records, and what they took."""
    runs = [record["run"] for record in records]
    devices = dict.fromkeys(f"{run['device']['cores']} cores of {run['device']['cpu']}" for run in runs)
    versions = dict.fromkeys(", ".join(f"{name} {value}" for name, value in run["versions"].items()) for run in runs)
    threads = "/".join(sorted({str(run["threads"]) for run in runs}))
    days = ", ".join(sorted({run["date"][:10] for run in runs}))
    where = "; ".join([*devices, *(text.replace("_", " ") for text in versions)])
    return f"{len(records):,} measurements, {threads} thread(s). {where}. {days}."


def ruler() -> str:
    """RULER's tasks down, methods across; first what the full cache can do."""
    from restkv_local.eval.report.cells import mean_text
    from restkv_local.eval.summary import rows

    records = load("ruler")
    if not records:
        return missing("ruler")
    found = rows(records)
    settings = list(dict.fromkeys((row.context, _setting(row)) for row in found))
    parts = []
    for context in dict.fromkeys(context for context, _ in settings):
        names = [name for c, name in settings if c == context]
        lines = []
        for task in dict.fromkeys(row.task for row in found if row.context == context):
            mine = {_setting(row): row for row in found if (row.task, row.context) == (task, context)}
            full = next(row for row in mine.values() if row.full)
            cells = [mean_text(mine[name].means["score"]) if name in mine else "-" for name in names]
            able = "yes" if full.means["score"].mean >= ABLE else "no"
            lines.append([f"`{task}`", able, str(full.n), *cells])
        heads = ["task", "can the full cache do it", "samples", *names]
        parts.append(f"Score, {context:,} tokens:\n\n{_table(heads, lines)}")
    return "\n\n".join([*parts, origin(records)])


def standing() -> str:
    """Where ReST-KV's defaults stand at each length and budget: fidelity by KL, needles by log-probability, of the
    kinds that the full cache can do."""
    from restkv_local.eval.report.best import standings
    from restkv_local.eval.report.cells import mean_text
    from restkv_local.eval.report.tables import title
    from restkv_local.eval.summary import part_of, rows

    lines = []
    for name, label, figure in (
        ("fidelity", "fidelity", "kl"), ("generated", "fidelity, generated texts", "kl"), ("niah", "niah", "log_prob"),
        ("needle-budgets", "niah, pass key and sentence", "log_prob"),
    ):  # fmt: skip
        records = load(name)
        able = _able(rows(records, by_part=True))
        found = rows([record for record in records if figure == "kl" or part_of(record) in able])
        stands = standings(found, figure)
        for number, row in enumerate(found):
            if row.name != OURS or figure not in row.means:
                continue
            like = [n for n in stands if _place(found[n]) == _place(row)]
            best = next(n for n in like if stands[n].best)
            difference = stands[number].difference
            lines.append(
                (
                    f"{label}, {title(figure)}",
                    f"{row.context:,}",
                    str(row.budget),
                    str(row.n),
                    mean_text(row.means[figure]),
                    f"{found[best].name} {mean_text(found[best].means[figure])}",
                    "-" if stands[number].best else mean_text(difference, sign=True),
                    stands[number].mark or "behind",
                )
            )
    heads = ["measure", "context", "budget", "samples", "ReST-KV", "best", "difference to it", "ReST-KV is"]
    return _table(heads, lines) if lines else "Not measured yet."


def missing(name: str) -> str:
    """What stands where there are no results."""
    return f"Not measured yet; `{name}` among the commands of docs/quality-grids.md makes it."


def _able(found: Sequence[Row]) -> set[str]:
    return {row.part for row in found if row.full and "score" in row.means and row.means["score"].mean >= ABLE}


def _place(row: Row) -> tuple[object, ...]:
    return (row.context, row.budget, row.prefill, row.reserve, row.kv_type, row.full)


def _setting(row: Row) -> str:
    return "full cache" if row.full else f"{row.name}, {row.budget}, {row.prefill}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, marks, *lines])
