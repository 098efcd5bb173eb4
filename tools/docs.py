#!/usr/bin/env python3
"""Writes the marked blocks of README.md and docs/*.md from the code and from benchmarks/*.json.

    python3 tools/docs.py           write them
    python3 tools/docs.py --check   name the blocks that are out of date, and fail if there are any

A block stands between `<!-- generated: NAME -->` and `<!-- end -->`. Run this inside the environment:

    . .venv/bin/activate
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The checkout, not the installed copy of it.
sys.path.insert(0, str(ROOT))

try:
    from lib.docs import api, archives, devices, portability, programs, quality, results, settings, tasks, turns
except ModuleNotFoundError as err:
    sys.exit(f"docs.py: {err.name} is missing; run it inside the environment: . .venv/bin/activate")

BLOCKS: dict[str, Callable[[], str]] = {
    **{f"api {section}": api.block(section) for section in api.SECTIONS},
    "api errors": api.errors,
    "restkv-chat": programs.chat,
    "restkv-chat commands": programs.chat_commands,
    "restkv-bench": programs.bench,
    "restkv-eval": programs.evaluation,
    "methods": settings.methods,
    "settings": settings.settings,
    "limits": settings.limits,
    "verified families": settings.families,
    "speed": results.speed,
    "memory": results.memory,
    "needle": results.needle,
    "machine": results.machine,
    "patch cost": results.patch_cost,
    "archive": archives.costs,
    "archive pressure": archives.pressure,
    "gpu checks": devices.gpu_checks,
    "gpu evictions": devices.gpu_evictions,
    "portability": portability.portability,
    "ruler tasks": tasks.ruler,
    "longbench tasks": tasks.longbench,
    "infinitebench tasks": tasks.infinitebench,
    "reason tasks": tasks.reason,
    **{name: turns.block(name) for name in turns.COMMANDS},
    "turns commands": turns.commands,
    "quality commands": quality.commands,
    "quality reading": quality.reading,
    "quality standing": quality.standing,
    "quality in short": quality.in_short,
    "quality fidelity": quality.block("fidelity"),
    "quality generated": quality.block("generated"),
    "quality allocation": quality.block("allocation"),
    "quality niah": quality.block("niah"),
    "quality needle-budgets": quality.block("needle-budgets"),
    "quality ablation": quality.block("ablation"),
    "quality needle-ablation": quality.block("needle-ablation"),
    "quality prefill": quality.block("prefill"),
    "quality ruler": quality.ruler,
    "quality long": quality.block("long"),
}
_BLOCK = re.compile(r"(<!-- generated: ([^>]+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_MARK = re.compile(r"<!-- (?:generated: [^>]+?|end) -->")


class DocsError(Exception):
    """A page's marks cannot be read."""


def pages() -> list[Path]:
    """Every page that may hold blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def render(text: str, name: str) -> tuple[str, list[str]]:
    """The page with its blocks written anew, and the names of those that changed. name: of the page, for errors."""
    stale: list[str] = []

    def write(match: re.Match[str]) -> str:
        block = match[2]
        if block not in BLOCKS:
            raise DocsError(f"{name} names an unknown block '{block}'; known are {', '.join(BLOCKS)}")
        new = f"{BLOCKS[block]().strip()}\n"
        if new != match[3]:
            stale.append(block)
        return f"{match[1]}{new}{match[4]}"

    written = _BLOCK.sub(write, text)
    if len(_MARK.findall(text)) != 2 * len(_BLOCK.findall(text)):
        raise DocsError(f"{name} has a mark without its partner; a block ends with <!-- end --> on a line of its own")
    return written, stale


def main(argv: list[str]) -> int:
    """Write or check all pages; the exit code is 1 when a check finds a block out of date."""
    if argv not in ([], ["--check"]):
        print(f"usage: python3 tools/docs.py [--check]; got {' '.join(argv)}", file=sys.stderr)
        return 2
    found = 0
    for page in pages():
        inside = page.relative_to(ROOT)
        try:
            text, stale = render(page.read_text(encoding="utf-8"), str(inside))
        except (DocsError, settings.SettingsError) as err:
            print(f"docs.py: {err}", file=sys.stderr)
            return 1
        found += len(stale)
        for block in stale:
            print(f"{inside}: '{block}' {'is out of date' if argv else 'written'}")
        if stale and not argv:
            page.write_text(text, encoding="utf-8", newline="\n")
    if found and argv:
        print("docs.py: bring them up to date with `python3 tools/docs.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
