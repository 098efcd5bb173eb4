"""Help of the programs, as blocks of the docs."""

from __future__ import annotations

import click

# Not the terminal's: a block must not depend on where it was written.
WIDTH = 80


def chat() -> str:
    """Help of restkv-chat and of its sub-commands."""
    from restkv_local.cli.chat.main import main

    parts = [_help(main, "restkv-chat")]
    for name, command in sorted(main.commands.items()):
        parts.append(f"### restkv-chat {name}\n\n{_help(command, f'restkv-chat {name}')}")
    return "\n\n".join(parts)


def chat_commands() -> str:
    """Table of what can be typed in a conversation."""
    from restkv_local.cli.chat.commands import COMMANDS

    rows = [f"| `{command.usage.replace(', ', '`, `')}` | {command.summary} |" for command in COMMANDS]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def bench() -> str:
    """Help of restkv-bench and of each of its commands."""
    from restkv_local.cli.bench.main import main

    parts = [_help(main, "restkv-bench")]
    for name, command in sorted(main.commands.items()):
        if not command.hidden:
            parts.append(f"### restkv-bench {name}\n\n{_help(command, f'restkv-bench {name}')}")
    return "\n\n".join(parts)


def evaluation() -> str:
    """Help of restkv-eval and of each of its commands."""
    from restkv_local.cli.eval.main import main

    parts = [_help(main, "restkv-eval")]
    for name, command in sorted(main.commands.items()):
        parts.append(f"### restkv-eval {name}\n\n{_help(command, f'restkv-eval {name}')}")
    return "\n\n".join(parts)


def _help(command: click.Command, name: str) -> str:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    text = command.get_help(click.Context(command, info_name=name, **settings))
    return "\n".join(["```text", *(line.rstrip() for line in click.unstyle(text).splitlines()), "```"])
