"""Charts as inline SVG. Colours are classes and variables of the page's style, so that light and dark both work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 44
N_COLOURS = 12
_DASHES = ("", "6 3", "2 3")
_MAP_MIN = 190  # room for a name such as "streamingllm, exact, budget 1024" in two lines


@dataclass(frozen=True)
class Point:
    """low, high: the ends of an interval, None for none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """colour: 0 to N_COLOURS - 1, or -1 for the yardstick; dash: 0 to 2."""

    name: str
    points: Sequence[Point]
    colour: int
    dash: int = 0


def line_chart(
    lines: Sequence[Line], x_title: str, y_title: str, *, log_x: bool = False, x_text: Sequence[tuple[float, str]] = ()
) -> str:
    """A chart of lines with intervals and a legend. x_text: marks of the x axis; none: chosen."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    ys = [y for p in points for y in (p.y, p.low, p.high) if y is not None]
    low, high = _room(min(ys), max(ys))
    xs = [math.log(p.x) if log_x else p.x for p in points]
    left, right = _room(min(xs), max(xs))

    def at_x(x: float) -> float:
        share = ((math.log(x) if log_x else x) - left) / (right - left)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def at_y(y: float) -> float:
        return _TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{y_title} by {x_title}")}">']
    for value in ticks(low, high):
        y = at_y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value, text in x_text or [(value, f"{value:g}") for value in ticks(min(xs), max(xs))]:
        parts.append(f'<text x="{at_x(value):.1f}" y="{_HEIGHT - 26}" text-anchor="middle">{escape(text)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>')
    centre = (_TOP + _HEIGHT - _BOTTOM) / 2
    turn = f'transform="rotate(-90 14 {centre})"'
    parts.append(f'<text x="14" y="{centre}" text-anchor="middle" {turn}>{escape(y_title)}</text>')
    for place, line in enumerate(lines):
        # Intervals at the same memory stand side by side.
        shift = (place - (len(lines) - 1) / 2) * min(3.0, 24 / max(1, len(lines)))
        parts.append(_drawn(line, at_x, at_y, 0.0 if len(line.points) > 2 and not log_x else shift))
    parts.append("</svg>")
    return f'<figure>{"".join(parts)}<figcaption>{legend(lines)}</figcaption></figure>'


def _drawn(line: Line, at_x: object, at_y: object, shift: float) -> str:
    assert callable(at_x) and callable(at_y)
    style = f'class="c{line.colour}"' if line.colour >= 0 else 'class="full"'
    dash = f' stroke-dasharray="{_DASHES[line.dash % len(_DASHES)]}"' if line.dash % len(_DASHES) else ""
    places = [(at_x(p.x) + shift, at_y(p.y), p) for p in sorted(line.points, key=lambda p: p.x)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    parts = [f"<g {style}><title>{escape(line.name)}</title>"]
    parts.append(f'<polyline fill="none" points="{path}"{dash}/>')
    for x, y, point in places:
        if point.low is not None and point.high is not None:
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{at_y(point.low):.1f}" y2="{at_y(point.high):.1f}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    parts.append("</g>")
    return "".join(parts)


def legend(lines: Sequence[Line]) -> str:
    """Names with their colours and dashes."""
    items = []
    for line in lines:
        style = f"c{line.colour}" if line.colour >= 0 else "full"
        dash = _DASHES[line.dash % len(_DASHES)]
        stroke = f' stroke-dasharray="{dash}"' if dash else ""
        items.append(
            f'<span class="key"><svg viewBox="0 0 24 8" class="swatch"><g class="{style}">'
            f'<polyline points="0,4 24,4"{stroke}/></g></svg>{escape(line.name)}</span>'
        )
    return "".join(items)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two bounds, about five."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _room(low: float, high: float) -> tuple[float, float]:
    """Bounds with a margin, also for a single value."""
    margin = (high - low) * 0.06 or abs(high) * 0.06 or 0.5
    return low - margin, high + margin


@dataclass(frozen=True)
class Square:
    """A field of a heat map. value: its colour, 0 (bad) to 1; text: what stands in it; title: at the mouse."""

    value: float
    text: str
    title: str


def heat_map(name: str, columns: Sequence[str], lines: Sequence[tuple[str, Sequence[Square | None]]]) -> str:
    """A grid of coloured fields with its numbers written in it; None: not measured."""
    wide, tall, left, top = 56, 24, 64, 22
    width, height = left + wide * len(columns), top + tall * len(lines)
    parts = [f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" aria-label="{escape(name)}">']
    for i, text in enumerate(columns):
        parts.append(f'<text x="{left + (i + 0.5) * wide}" y="14" text-anchor="middle">{escape(text)}</text>')
    for j, (text, squares) in enumerate(lines):
        y = top + j * tall
        parts.append(f'<text x="{left - 6}" y="{y + 16}" text-anchor="end">{escape(text)}</text>')
        for i, square in enumerate(squares):
            if square is None:
                continue
            x = left + i * wide
            hue = 8 + 132 * min(1.0, max(0.0, square.value))
            parts.append(
                f'<g><title>{escape(square.title)}</title>'
                f'<rect x="{x}" y="{y}" width="{wide - 1}" height="{tall - 1}" class="heat" style="--hue:{hue:.0f}"/>'
                f'<text x="{x + wide / 2}" y="{y + 16}" text-anchor="middle">{escape(square.text)}</text></g>'
            )
    parts.append("</svg>")
    # A long name breaks instead of pushing the next map away.
    style = f'style="width:{max(width, _MAP_MIN)}px"'
    return f'<figure class="small" {style}><figcaption>{escape(name)}</figcaption>{"".join(parts)}</figure>'
