"""The report as one HTML page: style, charts and tables inline, nothing loaded from anywhere, no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ...plan.machine import size
from ..results import Record
from ..stats import mean_of
from ..summary import SHARES, Row, rows, setting_key
from ..variant import FULL
from .charts import N_COLOURS, Line, Point, Square, heat_map, line_chart
from .style import STYLE
from .tables import CONVENTION, figures_of, how_to_read, html_table, html_turns, title

# Log-probabilities below this have the colour of the worst: a five-digit key at random has -11.5.
_WORST_LOG_PROB = -12.0


def html_page(records: Sequence[Record]) -> str:
    """The page. Every text that comes from results is escaped."""
    found = rows(records)
    sections = []
    for model, task in dict.fromkeys((row.model, row.task) for row in found):
        mine = [row for row in found if (row.model, row.task) == (model, task)]
        of_task = [r for r in records if (r.get("model", {}).get("name", ""), r["task"]) == (model, task)]
        sections.append(_section(model, task, mine, of_task))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>restkv-eval</title><style>{STYLE}</style></head><body>"
        f"<h1>What eviction costs in quality</h1>{_origin(records)}"
        f"<p>{escape(CONVENTION)}{escape(_groups(records))}</p><p>{escape(how_to_read())}</p>"
        f"{''.join(sections)}</body></html>\n"
    )


def _section(model: str, task: str, found: Sequence[Row], records: Sequence[Record]) -> str:
    parts = [f"<section><h2>{escape(task)}, {escape(model)}</h2>"]
    colours = _colours(found)
    for context in sorted({row.context for row in found}):
        here = [row for row in found if row.context == context]
        charts = [_against_memory(here, figure, colours) for figure in figures_of(task, here)]
        if any(charts):
            parts.append(f"<h3>{context:,} tokens: quality against memory</h3>")
            parts.append(f"<div class=charts>{''.join(charts)}</div>")
    parts += [html_turns(records), _along(records, colours), _needles(records)]
    parts.append(f"<h3>All rows</h3>{html_table(task, found)}")
    by_part = rows(records, by_part=True)
    if len({row.part for row in by_part}) > 1:
        parts.append(f"<details><summary>By kind</summary>{html_table(task, by_part)}</details>")
    parts.append("</section>")
    return "".join(parts)


def _line_name(name: str, prefill: str | None) -> str:
    return f"{name}, {prefill}" if prefill else "full cache"


def _colours(found: Sequence[Row]) -> dict[str, int]:
    names = dict.fromkeys(row.name for row in found if not row.full)
    return {name: i % N_COLOURS for i, name in enumerate(names)}


def _against_memory(found: Sequence[Row], figure: str, colours: dict[str, int]) -> str:
    """A line per method and prefill, a point per budget; the full cache as a level line."""
    evicting = [row for row in found if not row.full and figure in row.means]
    if not evicting:
        return ""
    prefills = list(dict.fromkeys(row.prefill for row in evicting))
    lines = []
    for key in dict.fromkeys((row.name, row.prefill) for row in evicting):
        points = [_point(row, figure) for row in evicting if (row.name, row.prefill) == key]
        lines.append(Line(_line_name(*key), points, colours[key[0]], prefills.index(key[1])))
    sizes = sorted({row.bytes for row in evicting})
    for row in found:
        if row.full and figure in row.means:
            mean = row.means[figure]
            ends = sorted({sizes[0], sizes[-1]})
            level = [Point(x, mean.mean, mean.low if x == ends[-1] else None, mean.high) for x in ends]
            lines.insert(0, Line(f"full cache ({size(row.bytes)})", level, -1, 1))
    marks = _thin([(x, size(x)) for x in sizes])
    return line_chart(lines, "memory of the cells", title(figure), log_x=True, x_text=marks)


def _point(row: Row, figure: str) -> Point:
    mean = row.means[figure]
    return Point(row.bytes, mean.mean, mean.low, mean.high)


def _thin(marks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Marks that do not stand in each other's way: at least a sixth of a factor e apart, the first always."""
    kept: list[tuple[float, str]] = []
    for mark in marks:
        if not kept or mark[0] > kept[-1][0] * 1.18:
            kept.append(mark)
    return kept


def _along(records: Sequence[Record], colours: dict[str, int]) -> str:
    """Loss along the positions of a text, where a task has windows."""
    records = [record for record in records if record.get("windows")]
    charts = []
    for context, budget in dict.fromkeys(
        (r["context"], r["setting"]["budget"]) for r in records if r["setting"]["method"] != FULL
    ):
        lines: dict[str, Line] = {}
        for record in records:
            setting = record["setting"]
            if record["context"] != context or setting["budget"] not in (None, budget):
                continue
            key = setting_key(record)
            if key not in lines:
                lines[key] = _windows_line([r for r in records if r["context"] == context and setting_key(r) == key])
        drawn = [
            Line(line.name, line.points, colours.get(line.name.rsplit(", ", 1)[0], -1), line.dash)
            for line in lines.values()
        ]
        chart = line_chart(drawn, "position", "loss, nats")
        charts.append(f"<div><h4>{context:,} tokens, budget {escape(str(budget))}</h4>{chart}</div>")
    return f"<h3>Loss along the text</h3><div class=charts>{''.join(charts)}</div>" if charts else ""


def _windows_line(records: Sequence[Record]) -> Line:
    losses: dict[float, list[float]] = {}
    for record in records:
        for window in record["windows"]:
            losses.setdefault((window["from"] + window["to"]) / 2, []).append(window["nll"])
    setting = records[0]["setting"]
    points = [Point(x, *mean_of(values)[1:]) for x, values in losses.items()]
    return Line(_line_name(setting["name"], setting["prefill"]), points, 0, int(setting["method"] == FULL))


def _needles(records: Sequence[Record]) -> str:
    """Heat maps of length and depth, one per setting, for results that have a depth."""
    records = [r for r in records if isinstance(r.get("labels", {}).get("depth"), (int, float))]
    if not records:
        return ""
    contexts = sorted({record["context"] for record in records})
    depths = sorted({float(record["labels"]["depth"]) for record in records})
    parts = ["<h3>Needles by length and depth</h3><p>Means over kinds and samples.</p>"]
    for figure in ("log_prob", "score"):
        maps = []
        for key in dict.fromkeys(setting_key(record) for record in records):
            mine = [r for r in records if setting_key(r) == key and r["scores"].get(figure) is not None]
            if not mine:
                continue
            setting = mine[0]["setting"]
            name = _line_name(setting["name"], setting["prefill"])
            if setting["budget"] is not None:
                name += f", budget {setting['budget']}"
            lines = [(f"{depth:.0%}", [_square(mine, figure, c, depth) for c in contexts]) for depth in depths]
            maps.append(heat_map(name, [f"{c:,}" for c in contexts], lines))
        if maps:
            parts.append(f"<h4>{escape(title(figure))}</h4><div class=maps>{''.join(maps)}</div>")
    return "".join(parts)


def _square(records: Sequence[Record], figure: str, context: int, depth: float) -> Square | None:
    values = [
        float(r["scores"][figure]) for r in records if r["context"] == context and r["labels"]["depth"] == depth
    ]
    if not values:
        return None
    mean = sum(values) / len(values)
    shade = mean if figure in SHARES else 1 - mean / _WORST_LOG_PROB
    return Square(shade, f"{mean:.2f}", f"{mean:.3f}, mean of {len(values)} at depth {depth:.0%} of {context:,} tokens")


def _groups(records: Sequence[Record]) -> str:
    """What the convention means for these models."""
    groups = {r["model"]["name"]: r["model"]["group"] for r in records if r.get("model", {}).get("group")}
    return "".join(f" {name}: group {group}." for name, group in groups.items())


def _origin(records: Sequence[Record]) -> str:
    """Where the figures come from: each different answer once."""
    rows_: dict[str, dict[str, None]] = {}

    def add(name: str, value: Any) -> None:
        if value not in (None, ""):
            rows_.setdefault(name, {})[str(value)] = None

    for record in records:
        run = record.get("run", {})
        add("model", record.get("model", {}).get("name"))
        for name, value in {**run.get("device", {}), **run.get("versions", {})}.items():
            add(name.replace("_", " "), value)
        add("threads", run.get("threads"))
        add("backend", run.get("backend"))
        add("days", str(run.get("date", ""))[:10])
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(', '.join(values))}</td></tr>" for name, values in rows_.items()
    )
    return f"<p>{len(records):,} results.</p><table class=facts><tbody>{lines}</tbody></table>"
