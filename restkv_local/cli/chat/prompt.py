"""The input line: editing, history, completion, several lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping

from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from ...paths import state_folder

FENCE = '"""'


def is_open(text: str) -> bool:
    """Whether Enter should add a line: a backslash ends the text, or a fence is not closed."""
    return text.count(FENCE) % 2 == 1 or text.endswith("\\")


def joined(text: str) -> str:
    """The line that was meant: no fences, and no backslash before a line's end outside of them. It starts with a slash,
    or with a word that leaves, only where the typed one does: a fence or a space before it make it a message."""
    parts = text.split(FENCE)
    parts[::2] = [part.replace("\\\n", "\n") for part in parts[::2]]
    return (" " if text.startswith(FENCE) else "") + "".join(parts).rstrip()


class _Commands(Completer):
    """Completes commands, and paths behind those that take one."""

    def __init__(self, summaries: Mapping[str, str], with_paths: Iterable[str]) -> None:
        self._summaries, self._with_paths = summaries, tuple(with_paths)
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        name, space, rest = text.partition(" ")
        if not text.startswith("/") or "\n" in text:
            return
        if space and name in self._with_paths:
            yield from self._paths.get_completions(Document(rest.rpartition(" ")[2]), complete_event)
        elif not space:
            for command, summary in self._summaries.items():
                if command.startswith(name):
                    yield Completion(command, start_position=-len(name), display_meta=summary)


class Prompt:
    """Reads messages from the terminal; draws on standard error, so that standard output holds answers only."""

    def __init__(self, summaries: Mapping[str, str], with_paths: Iterable[str], warn: Callable[[str], None]) -> None:
        # The output of a session of apps, not of the prompt: with one of its own, a prompt takes a dumb terminal, which
        # shows control sequences as text, for any other.
        self._output = create_output(stdout=sys.stderr)
        with create_app_session(output=self._output):
            self._session: PromptSession[str] = PromptSession(
                history=_history(warn),
                completer=_Commands(summaries, with_paths),
                complete_while_typing=False,
                key_bindings=_keys(),
                multiline=True,
                prompt_continuation=lambda width, number, wrapped: "." * (width - 1) + " ",
            )

    def read(self, draft: str = "") -> str:
        """One line, which starts with the draft, as `joined` gives it.

        Raises EOFError for Ctrl-D on an empty line and KeyboardInterrupt for Ctrl-C.
        """
        with create_app_session(output=self._output):
            return joined(self._session.prompt("> ", default=draft))

    @property
    def had_text(self) -> bool:
        """Whether the line held something when Ctrl-C came."""
        return bool(self._session.default_buffer.text.strip())


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history(warn: Callable[[str], None]) -> History:
    """Where the questions of former conversations are kept."""
    folder = state_folder()
    if folder is None:
        warn("there is no folder for a history file; the history ends with the program")
        return InMemoryHistory()
    path = folder / "history"
    try:
        # Questions can be private: the file is the user's alone.
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError as error:
        warn(f"no history file at {path} ({error.strerror}); the history ends with the program")
        return InMemoryHistory()
    return FileHistory(str(path))
