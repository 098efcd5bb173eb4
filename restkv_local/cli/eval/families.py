"""The published benchmarks of restkv-eval: which tasks, from which data, with which options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ...eval import infinitebench, longbench, reason, ruler
from ...eval.infinitebench.generated import TASKS as GENERATED
from ...eval.sample import Task
from .options import Listed, choice

Option = Callable[[Callable[..., Any]], Callable[..., Any]]

# What runs without any local file.
RULER_DEFAULT = tuple(name for name in ruler.NAMES if not name.startswith("qa_"))
INFINITEBENCH_DEFAULT = tuple(task.name for task in GENERATED)


def tasks_option(names: Sequence[str], default: Sequence[str]) -> Option:
    """--tasks: some of a family."""
    which = "all" if tuple(default) == tuple(names) else "those that need no file"
    return click.option(
        "--tasks", "names", type=Listed("TASK", choice(*names)), default=tuple(default), show_default=which,
        help=f"Which tasks run: {', '.join(names)}.",
    )  # fmt: skip


def data_option(what: str) -> Option:
    """--data: a folder with local files."""
    return click.option(
        "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), default=None, metavar="DIR",
        help=f"Folder with {what}.",
    )  # fmt: skip


RULER_OPTIONS = (
    tasks_option(ruler.NAMES, RULER_DEFAULT),
    data_option(f"{ruler.SQUAD_FILES[0]} and {ruler.HOTPOTQA_FILES[0]} for the qa tasks, {ruler.ESSAY_FILE} if any"),
    click.option(
        "--essay", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=None, metavar="FILE",
        help="Text that hides needles, where RULER takes essays. Without it, built-in prose.",
    ),
)  # fmt: skip
LONGBENCH_OPTIONS = (
    tasks_option(longbench.NAMES, longbench.NAMES),
    data_option("the official files, one NAME.jsonl per dataset"),
    click.option(
        "--download", is_flag=True, help="Fetch what is missing in --data first (needs the package datasets)."
    ),
)
INFINITEBENCH_OPTIONS = (
    tasks_option(infinitebench.NAMES, INFINITEBENCH_DEFAULT),
    data_option("the official NAME.jsonl of tasks that are not generated"),
)
REASON_OPTIONS = (
    tasks_option(reason.NAMES, tuple(name for name in reason.NAMES if name != "humaneval")),
    data_option("the official files (docs/tasks.md names them)"),
    click.option("--run-code", is_flag=True, help="Let humaneval run what the model writes, in a process with limits."),
)


def make_ruler(names: Sequence[str], data: Path | None, essay: Path | None) -> Sequence[Task]:
    """RULER's tasks of these names."""
    return _chosen(ruler.tasks(data, essay), names)


def make_longbench(names: Sequence[str], data: Path | None, download: bool) -> Sequence[Task]:
    """LongBench's datasets of these names."""
    if data is None:
        raise click.UsageError("longbench reads local files: name their folder with --data")
    if download:
        longbench.download(names, data)
    return _chosen(longbench.tasks(data), names)


def make_infinitebench(names: Sequence[str], data: Path | None) -> Sequence[Task]:
    """InfiniteBench's tasks of these names."""
    return _chosen(infinitebench.tasks(data), names)


def make_reason(names: Sequence[str], data: Path | None, run_code: bool) -> Sequence[Task]:
    """Reasoning tasks of these names."""
    if data is None:
        raise click.UsageError("reason reads local files: name their folder with --data")
    return _chosen(reason.tasks(data, run_code), names)


def _chosen(tasks: Sequence[Task], names: Sequence[str]) -> Sequence[Task]:
    return [task for task in tasks if task.name in names]
