"""Commands of the conversation, those lines that start with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...engine.documents import read_document
from .session import Session
from .ui import UI
from .why import why


class Leave(Exception):
    """The user wants to leave."""


@dataclass(frozen=True)
class Command:
    """argument: what follows the name, for the help; run: called with the session, the drawing and that text."""

    argument: str
    summary: str
    run: Callable[[Session, UI, str], None]


def execute(line: str, session: Session, ui: UI) -> None:
    """Run one command line. Raises Leave, and what a command raises."""
    name, _, rest = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        ui.error(f"unknown command {name}; /help lists them (a space before the slash sends the line as text)")
    elif rest.strip() and not command.argument:
        ui.error(f"{name} takes nothing behind it")
    else:
        command.run(session, ui, rest.strip())


def _exit(session: Session, ui: UI, rest: str) -> None:
    raise Leave


def _clear(session: Session, ui: UI, rest: str) -> None:
    session.clear()
    ui.notice("the conversation is empty")


def _regen(session: Session, ui: UI, rest: str) -> None:
    ui.begin_turn()
    turn = None
    try:
        turn = session.again(ui.draw)
    finally:
        ui.end_turn(turn)
    if turn is None:
        ui.error("there is no question yet")


def _read(session: Session, ui: UI, rest: str) -> None:
    if not rest:
        ui.error("/read needs a path")
        return
    document = read_document(rest)
    session.documents.append(document)
    ui.notice(f"{document.name}: {len(document.text):,} characters go before the next question")


def _system(session: Session, ui: UI, rest: str) -> None:
    session.system = rest or None
    again = "; the conversation will be read again" if session.messages else ""
    ui.notice(f"the system prompt is {'set' if rest else 'removed'}{again}")


def _stats(session: Session, ui: UI, rest: str) -> None:
    ui.stats(session.engine.report())


def _help(session: Session, ui: UI, rest: str) -> None:
    ui.table([(f"{name} {command.argument}".strip(), command.summary) for name, command in COMMANDS.items()])
    ui.table(
        [
            ("Ctrl-C", "stop the answer or the reading"),
            ("Ctrl-D", "leave"),
            ("Alt-Enter", 'a new line; so does \\ at a line\'s end, and Enter between """ and """'),
        ]
    )


COMMANDS: dict[str, Command] = {
    "/exit": Command("", "leave", _exit),
    "/clear": Command("", "forget the conversation", _clear),
    "/regen": Command("", "answer the last question again; stopped, the answer from before stays", _regen),
    "/read": Command("PATH", "put a document before the next question", _read),
    "/system": Command("TEXT", "set the system prompt; without a text, remove it", _system),
    "/stats": Command("", "what is in the cache, what was evicted, what it cost", _stats),
    "/why": Command("", "the passages that the last answer stands on", why),
    "/help": Command("", "this list", _help),
}
SUMMARIES = {name: command.summary for name, command in COMMANDS.items()}
WITH_PATH = tuple(name for name, command in COMMANDS.items() if command.argument == "PATH")
