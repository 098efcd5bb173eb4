"""`restkv-chat sessions`: what was saved; no model is loaded."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...engine.session_header import look
from ...plan.machine import size
from ..failure import Command
from ..options import CONTEXT_SETTINGS
from . import keeping, shelf
from .ui import printable


@click.group(context_settings=CONTEXT_SETTINGS, invoke_without_command=True)
@click.pass_context
def sessions(ctx: click.Context) -> None:
    """List, show and delete saved conversations. Alone it lists them."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@sessions.command("list", cls=Command, context_settings=CONTEXT_SETTINGS)
def list_() -> None:
    """All of them, the newest first."""
    rows = keeping.table()
    if not rows:
        click.echo("there is no session yet; --session NAME or /save NAME makes one")
        return
    grid = Table.grid(padding=(0, 2))
    for name, about in rows:
        grid.add_row(Text(name, style="bold"), Text(printable(about)))
    Console(highlight=False).print(grid)


@sessions.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.argument("name")
def show(name: str) -> None:
    """What one of them holds: its model, sizes and first question."""
    path = shelf.existing(name)
    found = look(path)
    for title, value in (
        ("model", found.model),
        ("saved", keeping.when(found)),
        ("positions", f"{found.tokens:,}"),
        ("in the archive", f"{found.rows:,}"),
        ("size", size(found.bytes)),
        ("messages", str(len(found.messages))),
        ("first question", keeping.first_question(path)),
        ("file", str(path)),
    ):
        click.echo(f"{title:15} {printable(value)}")


@sessions.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.argument("name")
def delete(name: str) -> None:
    """Delete one of them for good."""
    shelf.delete(name)
    click.echo(f"session '{name}' deleted")
