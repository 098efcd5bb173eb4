"""Commands of the conversation, those lines that start with a slash. A new one is a row of `COMMANDS`."""

from __future__ import annotations

from . import attach
from .command import Command, Leave
from .session import Session
from .ui import UI

# Words that leave when they stand alone; behind a space they are a message.
LEAVING = ("exit", "quit")


def is_command(line: str) -> bool:
    """Whether a line is for the chat and not for the model: a slash at its start, a word that leaves, or nothing but
    files in quotes, as terminals write those that are dropped onto them."""
    return line.startswith("/") or line in LEAVING or (line[:1] in ("'", '"') and attach.are_files(line))


def execute(line: str, session: Session, ui: UI) -> None:
    """Run one command line. Raises Leave, and what a command raises."""
    name, *rest = line.rstrip().split(maxsplit=1)
    command = _BY_NAME.get(name)
    if name in LEAVING:
        raise Leave
    if command is None and attach.are_files(line):  # dropped onto the terminal
        attach.run(session, ui, line)
    elif command is None:
        ui.error(f"unknown command {name}; /help lists them (a space before the slash sends the line as text)")
    elif rest and not command.argument:
        ui.error(f"{name} takes nothing behind it")
    else:
        command.run(session, ui, "".join(rest))


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


def _system(session: Session, ui: UI, rest: str) -> None:
    session.system = rest or None
    again = "; the conversation will be read again" if session.messages else ""
    ui.notice(f"the system prompt is {'set' if rest else 'removed'}{again}")


def _stats(session: Session, ui: UI, rest: str) -> None:
    ui.stats(session.engine.report())


def _help(session: Session, ui: UI, rest: str) -> None:
    ui.table([(command.usage, command.summary) for command in COMMANDS])
    ui.table(
        [
            ("Ctrl-C", "stop the answer or the reading"),
            ("Ctrl-D", f"leave; so does the word {' or '.join(LEAVING)} alone"),
            ("Alt-Enter", 'a new line; so does \\ at a line\'s end, and Enter between """ and """'),
            ("a space", "before a slash, or before such a word, sends the line as text"),
        ]
    )


COMMANDS: tuple[Command, ...] = (
    Command("/file", "PATH ...", "put documents before the next question", attach.run, ("/read",), paths=True),
    Command("/regen", "", "answer the last question again; stopped, the answer from before stays", _regen),
    Command("/system", "TEXT", "set the system prompt; without a text, remove it", _system),
    Command("/stats", "", "what is in the cache, what was evicted, what it cost", _stats),
    Command("/clear", "", "forget the conversation", _clear),
    Command("/help", "", "this list", _help, ("/?",)),
    Command("/exit", "", "leave", _exit, ("/quit", "/bye")),
)
_BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}
SUMMARIES = {name: command.summary for name, command in _BY_NAME.items()}
WITH_PATHS = tuple(name for name, command in _BY_NAME.items() if command.paths)
