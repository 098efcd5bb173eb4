"""Tables of benchmarks/archive-*.json: what an archive costs. No number of a measurement is written by hand."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from . import results

_COMMAND = "restkv-bench archive --contexts 6144 --json benchmarks/archive-6k.json"


def costs() -> str:
    """Reading with recall beside stream, a question and a cut beside reading; one row per file and length."""
    header = (
        "text", "model", "archive", "chunk", "stream", "recall", "slower", "by processor time", "a question",
        "of reading", "cut, a question", "read again", "faster", "from the archive",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for result, row in _rows(limited=False):
        rows.append(
            (
                f"{row['context']:,}",
                result["settings"]["model"],
                f"{results.size_of(row['archive_bytes'])}, {row['archive_place']}",
                f"{row['chunk']:,}",
                _seconds(row, "stream_seconds"),
                _seconds(row, "read_seconds"),
                _share(row, "slower", "{:+.0%}", "at most {:.0%}"),
                _share(row, "slower_cpu", "{:+.0%}", "at most {:.0%}", of="slower"),
                _seconds(row, "question_seconds"),
                _share(row, "question_share", "{:.1%}", "at most {:.0%}"),
                _seconds(row, "cut_seconds"),
                _seconds(row, "again_seconds"),
                _share(row, "cut_faster", "{:.0f}x", "at least {:.0f}x"),
                f"{results.size_of(row['bytes_per_s'])}/s",
            )
        )
    return _block(header, rows, limited=False)


def pressure() -> str:
    """Reading and asking where the system holds nothing of the file, or may not hold much; one row per length."""
    header = (
        "text", "model", "archive", "memory", "reading", "cold", "slower", "a question", "cold", "from the archive",
        "cold", "of the disk, reading", "cold", "a question, cold",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for result, row in _rows(limited=True):
        limit = result["device"]["memory_limit_bytes"]
        rows.append(
            (
                f"{row['context']:,}",
                result["settings"]["model"],
                results.size_of(row["archive_bytes"]),
                "free" if limit is None else f"at most {results.size_of(limit)}",
                _seconds(row, "read_seconds"),
                _seconds(row, "cold_read_seconds"),
                _share(row, "cold_slower", "{:+.0%}"),
                _seconds(row, "question_seconds"),
                _seconds(row, "cold_question_seconds"),
                f"{results.size_of(row['question_bytes_per_s'])}/s",
                f"{results.size_of(row['cold_bytes_per_s'])}/s",
                results.size_of(row["read_disk_bytes"]),
                results.size_of(row["cold_disk_bytes"]),
                results.size_of(row["cold_question_disk_bytes"]),
            )
        )
    return _block(header, rows, limited=True)


def _files(*, limited: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and figures of each file: those of cold reading or little memory, or the others."""
    for path in sorted(results.FOLDER.glob("archive-*.json")):
        result = results.load(path.stem)
        if result is not None:
            pressed = result["device"]["memory_limit_bytes"] is not None or result["settings"]["cold"]
            if pressed == limited:
                yield path.stem, result


def _rows(*, limited: bool) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    found = [(result, row) for _, result in _files(limited=limited) for row in result["rows"]]
    return sorted(found, key=lambda pair: (pair[1]["context"], pair[0]["settings"]["model"], pair[1]["chunk"]))


def _block(header: tuple[str, ...], rows: list[tuple[str, ...]], *, limited: bool) -> str:
    found = _rows(limited=limited)
    if not found:
        return f"Not measured yet; the command is `{_COMMAND}{' --cold' if limited else ''}`."
    lines = [f"- {_origin(name, result)}" for name, result in _files(limited=limited)]
    for result, row in found:
        lines += [f"- {row['context']:,} tokens, {result['settings']['model']}: {row['note']}"] if row["note"] else []
    return "\n\n".join([results.table(header, rows), "\n".join(lines)])


def _origin(name: str, result: dict[str, Any]) -> str:
    """Machine, date and the command that makes a file, the model among its options where it is not the embedded one."""
    from restkv_local.models.files import embedded_path

    device, settings = result["device"], result["settings"]
    command = results.command_of(result, "archive", name)
    if settings["model"] != embedded_path().name:
        command = command.replace("bench archive", f"bench archive --model {shlex.quote(settings['model'])}")
    limit, load = device["memory_limit_bytes"], device.get("load")
    busy = "" if load is None else f", {load:.1f} threads wanted a core"
    under = "" if limit is None else f", in a group of processes with {results.size_of(limit)} of memory"
    threads = _count(settings["threads"] or device["cores"], "thread")
    return (
        f"{device['cores']} cores of {device['cpu']}, {threads}, budget {settings['budget']:,}, "
        f"{_count(settings['pairs'], 'pair')}{busy}{under}, {result['date'][:10]}. "
        f"Command: `{command}`."
    )


def _count(n: int, name: str) -> str:
    return f"{n} {name}" if n == 1 else f"{n} {name}s"


def _share(row: dict[str, Any], name: str, form: str, asked: str = "", of: str = "") -> str:
    """The median of the pairs, with least and most; and what is asked at this length of that figure, or of the one that
    `of` names, met or missed."""
    value = row.get(name)
    if value is None:
        return "-"
    low, high = row[f"{name}_min"], row[f"{name}_max"]
    text = f"{form.format(value)} ({form.format(low)} to {form.format(high)})"
    if not asked or (of or name) not in row["asked"]:
        return text
    bound = row["asked"][of or name]
    met = value >= bound if asked.startswith("at least") else value <= bound
    return f"{text}; asked {asked.format(bound)}: {'met' if met else 'missed'}"


def _seconds(row: dict[str, Any], name: str) -> str:
    value: float | None = row[name]
    return "-" if value is None else f"{value:.0f} s" if value >= 10 else f"{value * 1000:,.0f} ms"
