"""/why: the passages that the last answer stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...config import SOURCE_WEAK
from .session import Session
from .ui import UI

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...engine.report import Source

# Characters of a passage that are shown.
_SHOWN = 240


def why(session: Session, ui: UI, rest: str) -> None:
    """Show the passages, the one that was looked at most first. Raises what Engine.sources raises."""
    if not session.messages:
        ui.error("there is no answer yet")
        return
    found = session.engine.sources()
    report = session.engine.report()
    for line in lines(found):
        ui.notice(line)
    if report.sources_reason:
        ui.notice(report.sources_reason)
    elif found[0].weight < SOURCE_WEAK:
        ui.notice("that is little: the answer may stand on none of the text")
    if 0 < report.sources_tokens < report.completion_tokens:
        ui.notice(f"the last {report.sources_tokens:,} of its {report.completion_tokens:,} tokens looked there")


def lines(found: Sequence[Source]) -> list[str]:
    """A line for each passage: how much of a head's attention it had at most, and its text, control characters gone."""
    shown = []
    for one in found:
        words = " ".join("".join(c if c.isprintable() else " " for c in one.text).split())
        if len(words) > _SHOWN:
            words = f"{words[:_SHOWN].rpartition(' ')[0] or words[:_SHOWN]} ..."
        shown.append(f"{one.weight:4.0%}  {words}")
    return shown
