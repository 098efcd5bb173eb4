"""`restkv-bench archive`: what an archive costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ...bench.archive import ArchiveSettings, measure
from ...config import CELLS_MAX
from ...engine.settings import EngineSettings
from ...plan.machine import size
from ..failure import Command
from ..options import CONTEXT_SETTINGS, Contexts, engine_class, engine_options, json_option, write_json

_CONTEXTS, _QUESTIONS, _PAIRS = (6144,), 4, 3


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.option(
    "--contexts", type=Contexts(at_least=256), default=_CONTEXTS, show_default="6144", help="Text lengths in tokens."
)
@engine_options(context=False, defaults={"archive": "file"})
@click.option(
    "--pairs", type=click.IntRange(min=1), default=_PAIRS, show_default=True,
    help="Pairs of readings, by stream and with recall, who comes first in turn; medians are reported.",
)
@click.option(
    "--questions", type=click.IntRange(min=1), default=_QUESTIONS, show_default=True,
    help="Questions that are timed in each pair, behind one that warms up.",
)
@click.option(
    "--chunk", type=click.IntRange(1, CELLS_MAX), default=None, metavar="TOKENS",
    help="Most tokens that are read with recall at once; it needs a --reserve as large. Chosen when not given.",
)
@click.option(
    "--cold", is_flag=True,
    help="Read and ask once more, and before each chunk and question have the system forget what it holds of the file.",
)
@json_option()
@click.pass_context
def archive(ctx: click.Context, /, settings: EngineSettings, json_file: Path | None, **options: Any) -> None:
    """What an archive costs.

    A text is read by stream without an archive, and with recall, in turn. Then questions are asked, and a prompt that
    leaves the text in its middle is answered: cut, and read again from the start. In a group of processes that may use
    little memory the file's pages count too: systemd-run --user --scope -p MemoryMax=400M restkv-bench archive
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 150)
    wanted = ArchiveSettings(**options)
    result: dict[str, Any] = {}
    for result in measure(settings, wanted, engine_class(ctx), lambda text: console.print(text, style="dim")):
        write_json(json_file, result)
    console.print(archive_table(result))
    for row in result["rows"]:
        if row["note"]:
            console.print(f"{row['context']:,}: {row['note']}", style="dim", markup=False)


def archive_table(result: dict[str, Any]) -> Table:
    """A block of lines per context: medians, with least and most of the ratios."""
    limit = result["device"]["memory_limit_bytes"]
    under = "" if limit is None else f", in {size(limit)} of memory"
    table = Table(title=f"{result['settings']['model']} on {result['device']['cpu']}{under}")
    for name in ("text", "", "with the archive", "beside it", "ratio (least to most)", "asked"):
        table.add_column(name, justify="left" if name == "" else "right")
    for row in result["rows"]:
        for line in _lines(row):
            table.add_row(*line)
        table.add_section()
    return table


def _lines(row: dict[str, Any]) -> list[tuple[str, ...]]:
    place = f"{size(row['archive_bytes'])} in a file" if row["archive_place"] == "file" else "in memory"
    lines: list[tuple[str, ...]] = [
        (
            f"{row['context']:,}", f"reading ({place})", _seconds(row, "read_seconds"),
            f"stream {_seconds(row, 'stream_seconds')}", percent(row, "slower"), asked(row, "slower", "at most {:.0%}"),
        ),
        (
            "", "a question", _seconds(row, "question_seconds"),
            f"behind stream {_seconds(row, 'stream_question_seconds')}", percent(row, "question_share", "{:.2%}"),
            asked(row, "question_share", "at most {:.0%}"),
        ),
        (
            "", "cut in the middle, a question", _seconds(row, "cut_seconds"),
            f"read again {_seconds(row, 'again_seconds')}", times(row, "cut_faster"),
            asked(row, "cut_faster", "at least {:.0f}x"),
        ),
        ("", "reading, processor time", _seconds(row, "read_cpu_seconds"),
         f"stream {_seconds(row, 'stream_cpu_seconds')}", percent(row, "slower_cpu"), ""),
        ("", "read from the archive", per_second(row, "bytes_per_s"), f"{size(row['read_bytes'])} in all", "", ""),
    ]  # fmt: skip
    if row.get("cold_read_seconds") is not None:
        disk = f"{size(row['cold_disk_bytes'])} of the disk"
        lines += [
            ("", "reading, cold", _seconds(row, "cold_read_seconds"), disk, percent(row, "cold_slower"), ""),
            (
                "", "a question, cold", _seconds(row, "cold_question_seconds"),
                f"{size(row['cold_question_disk_bytes'])} of the disk",
                percent(row, "cold_question_share", "{:.2%}"), "",
            ),
        ]  # fmt: skip
    return lines


def percent(row: dict[str, Any], name: str, form: str = "{:+.0%}") -> str:
    """A share: the median of the pairs, least and most behind it."""
    return f"{form.format(row[name])} ({form.format(row[f'{name}_min'])} to {form.format(row[f'{name}_max'])})"


def times(row: dict[str, Any], name: str) -> str:
    """A ratio, in the same way, where there is one."""
    if row[name] is None:
        return "-"
    return f"{row[name]:.0f}x ({row[f'{name}_min']:.0f} to {row[f'{name}_max']:.0f})"


def per_second(row: dict[str, Any], name: str) -> str:
    """Bytes per second, where anything was read."""
    return "-" if row[name] is None else f"{size(row[name])}/s"


def asked(row: dict[str, Any], name: str, form: str) -> str:
    """What is asked of a figure at this length."""
    return form.format(row["asked"][name]) if name in row["asked"] else ""


def _seconds(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return "-"
    return f"{value:.1f} s" if value >= 10 else f"{value * 1000:.0f} ms"
