"""The commands /system and /set: how answers are asked for and drawn."""

from __future__ import annotations

from .sampling import name_of
from .session import Session
from .ui import UI

_OWN = "there is no system prompt of yours: the model's template decides"


def system(session: Session, ui: UI, rest: str) -> None:
    """Show the system prompt, or set it; a pair of quotes with nothing between removes it."""
    if not rest:
        ui.notice(f"the system prompt is: {session.system}" if session.system else _OWN)
        return
    session.system = "" if rest in ('""', "''") else rest
    again = "; the conversation will be read again" if session.messages else ""
    ui.notice(f"the system prompt is set{again}" if session.system else f"{_OWN}{again}")


def draw(session: Session, ui: UI, rest: str) -> None:
    """Show how answers are drawn, or set one value, as "top-p 0.9" or "top-p=0.9"."""
    words = rest.replace("=", " ").split()
    if words[:1] == ["parameter"]:  # as other programs have it
        words = words[1:]
    if not words:
        ui.table(session.sampling.rows())
        return
    if len(words) != 2:
        ui.error("/set takes a name and a value, for example /set temperature 0.7; /set alone shows all")
        return
    session.sampling = session.sampling.with_(*words)
    name = name_of(words[0])
    ui.notice(f"{name} is {dict(session.sampling.rows())[name]}")
