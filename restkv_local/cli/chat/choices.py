"""The commands /system and /set: how answers are asked for and drawn."""

from __future__ import annotations

from .sampling import name_of
from .session import Session
from .ui import UI

_TEMPLATE = "the system prompt is left to the model's template"


def system(session: Session, ui: UI, rest: str) -> None:
    """Show the system prompt, or set it: to none with a pair of quotes, to the template's with the word default."""
    again = ""
    if rest:
        session.system = None if rest == "default" else "" if rest in ('""', "''") else rest
        again = "; the conversation will be read again" if session.messages else ""
    if session.system is None:
        ui.notice(_TEMPLATE + again)
    else:
        ui.notice(f"the system prompt is {session.system or 'empty'}{again}")


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
