"""What is said of an archive: the dim line after a turn, the rows of /stats, the object of --json."""

from __future__ import annotations

from dataclasses import replace

from cli_fake import FakeEngine
from restkv_local.cli.chat.figures import recall_line, report_rows, turn_object
from restkv_local.cli.chat.session import Turn
from restkv_local.engine.report import ArchiveReport

PLAIN = FakeEngine().report()
ARCHIVE = ArchiveReport(
    place="file", types=("q8_0", "q4_0"), rows=5120, bytes=3 * 10**9, host_bytes=2 * 10**6, written_bytes=10**8,
    read_bytes=2 * 10**9, write_seconds=0.5, path="/tmp/rows.bin",
)  # fmt: skip
RECALLED = replace(
    PLAIN, archive=ARCHIVE, recalled=2, recalled_cells=2048, copied_cells=1812, recall_seconds=0.123
)


def test_a_turn_says_what_was_recalled() -> None:
    assert recall_line(RECALLED) == "recalled 1,812 cells in 0.1 s"
    assert recall_line(PLAIN) == recall_line(replace(RECALLED, copied_cells=0)) == ""


def test_stats_show_the_archive() -> None:
    rows = report_rows(RECALLED)
    assert (
        "archive",
        "5,120 positions in /tmp/rows.bin, q8_0 and q4_0, at most 3.0 GB, 2.0 MB of memory now; 100.0 MB written, "
        "2.0 GB read",
    ) in rows
    assert ("last recall", "2,048 cells in 2 recalls, 1,812 of them from the archive, in 0.12 s") in rows
    memory = replace(ARCHIVE, place="ram", types=("f16", "f16"), path=None)
    (text,) = [value for name, value in report_rows(replace(RECALLED, archive=memory)) if name == "archive"]
    assert text.startswith("5,120 positions in memory, f16, at most")
    assert not {"archive", "last recall"} & {name for name, _ in report_rows(PLAIN)}


def test_json_has_the_figures() -> None:
    def figures(report: object) -> list[object]:
        found = turn_object(Turn("", None, False, "answer", 0, report))  # type: ignore[arg-type]
        names = ("archive", "archive_bytes", "recalled_cells", "copied_cells", "recall_seconds")
        return [found[name] for name in names]

    assert figures(RECALLED) == ["file", 3 * 10**9, 2048, 1812, 0.123]
    assert figures(PLAIN) == ["none", 0, 0, 0, 0.0]
