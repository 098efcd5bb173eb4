"""The command /file: documents for the next question."""

from __future__ import annotations

import os
import shlex

from ...engine.documents import read_document
from ...paths import typed
from .session import Session
from .ui import UI


def run(session: Session, ui: UI, rest: str) -> None:
    """Put files before the next question: all of them, or none where one cannot be read."""
    if not rest:
        ui.error('/file needs a path, for example /file book.txt "my notes.txt"')
        return
    documents = [read_document(path) for path in paths_of(rest)]
    session.documents.extend(documents)
    for document in documents:
        ui.notice(f"{document.name}: {len(document.text):,} characters go before the next question")


def paths_of(text: str) -> list[str]:
    """Paths as a shell would take them, quoted or with a backslash before a space. A file of just that name, spaces and
    all, is one path."""
    if os.path.exists(typed(text)):
        return [text]
    try:
        return shlex.split(text)
    except ValueError:  # an apostrophe that is part of a name
        return text.split()


def are_files(line: str) -> bool:
    """Whether a line is nothing but paths of files, as a terminal writes what is dropped onto it."""
    return all(os.path.isfile(typed(path)) for path in paths_of(line))
