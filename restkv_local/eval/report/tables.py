"""Tables of the report: the same rows as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ...plan.machine import size
from ..results import Record
from ..summary import LOWER, Row, rows
from .best import standings
from .cells import Cell, mean_text
from .grids import GridCell, grids
from .turns import EXPLAINED, HEADS, TITLE, of_turns, turn_table

# What a task is judged by first, and in what order its figures stand. Tasks that are not named have a score.
FIGURES = {"fidelity": ("kl", "top1", "log_prob"), "ppl": ("nll", "perplexity"), "niah": ("log_prob", "score")}
_TURNS = ("log_prob", "score", "found")
_DEFAULT = ("score", "log_prob")
CONVENTION = (
    "One set of cells per KV head: the budget B per query head that papers give equals group x B cells here, "
    "where group is the number of query heads that share a KV head."
)
NAMES = {
    "kl": "KL(full, evicted), nats",
    "top1": "top-1 agreement",
    "log_prob": "log-probability",
    "score": "score",
    "nll": "loss, nats",
    "perplexity": "perplexity",
}


def figures_of(task: str, found: Sequence[Row]) -> list[str]:
    """The figures of a task that its rows have, the main one first."""
    have = {name for row in found for name in row.means}
    wanted = FIGURES.get(task, _TURNS if task.startswith("turns ") else _DEFAULT)
    return [name for name in wanted if name in have] + sorted(have - set(wanted))


def table(task: str, found: Sequence[Row]) -> tuple[list[str], list[list[Cell]]]:
    """Heads and lines of one task. All rows are there, also those that lose."""
    names = figures_of(task, found)
    heads = ["context", "method", "prefill", "budget", "memory", "samples"]
    if any(row.part for row in found):
        heads.insert(0, "kind")
    for name in names:
        heads += [title(name), "to the full cache"]
    heads.append("among its like")
    standing = standings(found, names[0]) if names else {}
    lines = []
    order = sorted(range(len(found)), key=lambda number: _order(found, number, names[0] if names else ""))
    for number in order:
        row, stands = found[number], standing.get(number)
        line = [Cell(row.part)] if heads[0] == "kind" else []
        line += [
            Cell(f"{row.context:,}", number=True),
            Cell(row.name),
            Cell(row.prefill or "-"),
            Cell("-" if row.budget is None else str(row.budget), number=True),
            Cell(size(row.bytes), number=True),
            Cell(str(row.n), number=True),
        ]
        for place, name in enumerate(names):
            strong = place == 0 and stands is not None and stands.best
            line += [
                Cell(mean_text(row.means.get(name)), number=True, strong=strong),
                Cell(mean_text(row.differences.get(name), sign=True), number=True),
            ]
        line.append(Cell(stands.mark if stands else "-"))
        lines.append(line)
    return heads, lines


def _order(found: Sequence[Row], number: int, figure: str) -> tuple[object, ...]:
    """By part, length, prefill and memory; the full cache first, then the better above the worse."""
    row = found[number]
    mean = row.means[figure].mean if figure in row.means else 0.0
    return (row.part, row.context, not row.full, row.prefill or "", row.bytes, mean if figure in LOWER else -mean)


def title(figure: str) -> str:
    """A figure's name for people."""
    return NAMES.get(figure, figure.replace("_", " "))


def html_table(task: str, found: Sequence[Row]) -> str:
    """A task's table; every text is escaped."""
    heads, lines = table(task, found)
    return _html(heads, lines)


def html_turns(records: Sequence[Record]) -> str:
    """The first question and the later ones, where questions were asked in turn."""
    records = of_turns(records)
    if not records:
        return ""
    return f"<h3>{escape(TITLE)}</h3><p>{escape(EXPLAINED)}</p>{_html(HEADS, turn_table(records))}"


def _html(heads: Sequence[str], lines: Sequence[Sequence[Cell]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = []
    for line in lines:
        cells = []
        for cell in line:
            text = escape(cell.text)
            cells.append(
                f"<td{' class=n' if cell.number else ''}>{f'<strong>{text}</strong>' if cell.strong else text}</td>"
            )
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def markdown(records: Sequence[Record]) -> str:
    """All tasks as Markdown: grids of methods and budgets, by kind where there are several, then every row."""
    return "\n\n".join([CONVENTION, how_to_read(), *markdown_tables(records)]) + "\n"


def markdown_tables(records: Sequence[Record]) -> list[str]:
    """The same without what explains them: headings and tables, to be set apart by empty lines."""
    found, by_part = rows(records), rows(records, by_part=True)
    parts = []
    for model, task in dict.fromkeys((row.model, row.task) for row in found):
        mine = [row for row in found if (row.model, row.task) == (model, task)]
        kinds = [row for row in by_part if (row.model, row.task) == (model, task)]
        parts.append(f"### {_plain(task)}, {_plain(model)}")
        turns = of_turns([r for r in records if (r.get("model", {}).get("name", ""), r["task"]) == (model, task)])
        if turns:
            lines = turn_table(turns)
            parts += [f"{TITLE}:", _table(HEADS, [cell.number for cell in lines[0]], lines), EXPLAINED]
        else:
            parts += _grids(task, mine)
            if len({row.part for row in kinds}) > 1:
                parts.append(_folded(f"{task}: by kind", _grids(task, kinds)))
        heads, lines = table(task, mine)
        numbers = [cell.number for cell in lines[0]] if lines else [False] * len(heads)
        parts.append(_folded(f"{task}: all rows", [_table(heads, numbers, lines)]))
    return parts


def _folded(summary: str, parts: Sequence[str]) -> str:
    """What a page shows on demand."""
    return "\n\n".join([f"<details><summary>{_plain(summary)}</summary>", *parts, "</details>"])


def _grids(task: str, found: Sequence[Row]) -> list[str]:
    """The first two figures of a task as grids."""
    parts = []
    for figure in figures_of(task, found)[:2]:
        for grid in grids(found, figure):
            where = [f"{grid.part}, " if grid.part else "", f"{grid.context:,} tokens, {grid.prefill}"]
            full = f"; full cache {mean_text(found[grid.full].means[figure])}" if grid.full is not None else ""
            heads = ["method", *(f"budget {budget}" for budget in grid.budgets)]
            lines = [
                [Cell(name), *(_grid_cell(found, figure, cell) for cell in cells)] for name, cells in grid.lines
            ]
            text = _table(heads, [False, *(True for _ in grid.budgets)], lines)
            parts.append(f"{title(figure)}, {_plain(''.join(where))}{full}:\n\n{text}")
    return parts


def _grid_cell(found: Sequence[Row], figure: str, cell: GridCell | None) -> Cell:
    if cell is None:
        return Cell("-", number=True)
    level = " =" if cell.level and not cell.best else ""
    return Cell(f"{mean_text(found[cell.number].means[figure])}{level}", number=True, strong=cell.best)


def _table(heads: Sequence[str], numbers: Sequence[bool], lines: Sequence[Sequence[Cell]]) -> str:
    text = [_line([_plain(head) for head in heads]), _line(["---:" if number else "---" for number in numbers])]
    for line in lines:
        text.append(_line([f"**{_plain(c.text)}**" if c.strong else _plain(c.text) for c in line]))
    return "\n".join(text)


def how_to_read() -> str:
    """What the columns say."""
    return (
        "In brackets are 95 % intervals over the samples: Student's t, or Wilson's where every score is 0 or 1. "
        "Differences to the full cache are paired, sample by sample. Memory is that of the cells (budget and reserve); "
        "with exact prefill the whole text is held while it is read. best: the best of its length, prefill and budget, "
        "by the first figure; level: its paired difference to the best has an interval that holds 0. In grids of "
        "methods and budgets the best of a column is bold, and = says level."
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that changes no Markdown table and brings in no HTML."""
    return " ".join(escape(text, quote=False).replace("|", "\\|").split())
