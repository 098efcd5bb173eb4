"""The sub-command `restkv-eval report`."""

from __future__ import annotations

from pathlib import Path

import click

from ...eval.compact import compact_lines
from ...eval.report import html_page, markdown
from ...eval.results import SCHEMA, read_results
from ..failure import Command
from ..options import CONTEXT_SETTINGS
from .options import CONVENTION

_OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command(
    cls=Command, context_settings=CONTEXT_SETTINGS,
    help=f"""One HTML page and a Markdown table from results.

RESULTS are files (*.jsonl) and folders of them, of any tasks, models and runs; of a measurement that was repeated the
last one counts. All rows are shown, also those that lose.

{CONVENTION}
""",
)  # fmt: skip
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--html", "html_file", type=_OUTPUT, default=None, metavar="FILE", help="The page: self-contained.")
@click.option("--markdown", "markdown_file", type=_OUTPUT, default=None, metavar="FILE", help="The tables as Markdown.")
@click.option(
    "--compact", "compact_file", type=_OUTPUT, default=None, metavar="FILE",
    help="The results themselves in few bytes, without answers; `report` reads them as well.",
)
def report(
    results: tuple[Path, ...], html_file: Path | None, markdown_file: Path | None, compact_file: Path | None
) -> None:
    files = (("--html", html_file), ("--markdown", markdown_file), ("--compact", compact_file))
    if not any(file for _, file in files):
        raise click.UsageError("nothing to write; add --html FILE, --markdown FILE or --compact FILE")
    for name, file in files:
        if file is not None and not file.resolve().parent.is_dir():
            raise click.UsageError(f"{name}: the folder of '{file}' does not exist")
    records = read_results(results, say=lambda text: click.echo(text, err=True))
    if html_file is not None:
        html_file.write_text(html_page(records), encoding="utf-8")
    if markdown_file is not None:
        markdown_file.write_text(markdown(records), encoding="utf-8")
    if compact_file is not None:
        compact_file.write_text("".join(compact_lines(records, SCHEMA)), encoding="utf-8", newline="\n")
    written = " and ".join(str(file) for _, file in files if file is not None)
    click.echo(f"{written}: {len(records):,} results", err=True)
