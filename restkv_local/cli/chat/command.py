"""What a command of the conversation is; the table of all of them is in commands.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .session import Session
from .ui import UI


class Leave(Exception):
    """The user wants to leave."""


@dataclass(frozen=True)
class Command:
    """A line that starts with a slash.

    name, aliases: what is typed. argument: what follows, for the help; "" refuses anything. summary: for the help. run:
    called with the session, the drawing and what follows the name, without the spaces around it; what it raises is said
    and the conversation goes on. paths: what follows are files, which Tab completes.
    """

    name: str
    argument: str
    summary: str
    run: Callable[[Session, UI, str], None]
    aliases: tuple[str, ...] = ()
    paths: bool = False

    @property
    def usage(self) -> str:
        """The name with its argument, and its other names."""
        return f"{self.name} {self.argument}".strip() + "".join(f", {alias}" for alias in self.aliases)
