"""Commands of the conversation, those lines that start with a slash. A new one is a row of `COMMANDS`."""

from __future__ import annotations

from . import attach, choices, keeping
from .command import Command, Leave
from .sampling import NAMES
from .session import Session, Turn
from .ui import UI
from .why import why

# Words that leave when they stand alone; behind a space they are a message.
LEAVING = ("exit", "quit")
# Characters of a question that are shown of one that is taken back.
_SHOWN = 60


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
    stays = f"; session '{session.name}' stays as it was saved" if session.name is not None else ""
    session.name = None
    ui.notice(f"the conversation is empty{stays}")


def ask_drawn(session: Session, ui: UI, question: str) -> Turn:
    """Ask, and draw what comes. Raises what the engine raises."""
    ui.begin_turn([document.name for document in session.documents])
    turn = None
    try:
        turn = session.ask(question, ui.draw)
    finally:
        ui.end_turn(turn)
    return turn


def _regen(session: Session, ui: UI, rest: str) -> None:
    ui.begin_turn()
    turn = None
    try:
        turn = session.again(ui.draw)
    finally:
        ui.end_turn(turn)
    if turn is None:
        ui.error("there is no question yet")


def _undo(session: Session, ui: UI, rest: str) -> None:
    question = session.undo()
    if question is None:
        ui.error("there is no question yet")
        return
    waiting = "; its documents wait for the next one" if session.documents else ""
    ui.notice(f"taken back: {_first_line(question)}{waiting}")


def _edit(session: Session, ui: UI, rest: str) -> None:
    question = session.undo()
    if question is None:
        ui.error("there is no question yet")
    else:
        session.draft = question


def _drop(session: Session, ui: UI, rest: str) -> None:
    if rest and not (rest.isdecimal() and int(rest)):
        ui.error("/drop takes how many questions to forget, for example /drop 2")
        return
    n = session.drop(int(rest or 1))
    questions = "1 question" if n == 1 else f"{n} questions"
    ui.notice(f"{questions} forgotten; what is left is read again" if n else "there is no question yet")


def _first_line(text: str) -> str:
    line = text.split("\n")[0]
    return line if line == text and len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


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
    Command("/undo", "", "take the last question and its answer back; its documents wait again", _undo),
    Command("/edit", "", "take them back and put the question into the line, to be changed", _edit),
    Command("/drop", "[N]", "forget the oldest question with its documents and answer, or the N oldest", _drop),
    Command("/system", "[TEXT]", 'show the system prompt, or set it ("" for none, or default)', choices.system),
    Command("/set", "[NAME VALUE]", f"show how answers are drawn, or set {', '.join(NAMES)}", choices.draw),
    Command("/stats", "", "what is in the cache, what was evicted, what it cost", _stats),
    Command("/why", "", "the passages that the last answer stands on", why),
    Command("/save", "[NAME]", "save the conversation with all that was read, under its name or another", keeping.save),
    Command("/load", "NAME", "go on with a saved conversation", keeping.load),
    Command("/sessions", "", "list what was saved, the newest first", keeping.list_sessions),
    Command("/clear", "", "forget the conversation", _clear),
    Command("/help", "", "this list", _help, ("/?",)),
    Command("/exit", "", "leave", _exit, ("/quit", "/bye")),
)
_BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}
SUMMARIES = {name: command.summary for name, command in _BY_NAME.items()}
WITH_PATHS = tuple(name for name, command in _BY_NAME.items() if command.paths)
