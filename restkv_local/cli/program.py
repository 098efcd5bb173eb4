"""What every program does around its work: 130 after Ctrl-C wherever it comes, and whole standard streams."""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

from .failure import one_line

EXIT_STOPPED = 130  # what a shell reports for a program that Ctrl-C ended
# Seconds until an interrupt that a callback dropped is sent again.
_AGAIN = 0.02
_STREAMS = 3  # standard input, output and error have the numbers 0 to 2


class Program(click.Group):
    """A program of this package, with sub-commands or without; its expected failures are one line."""

    def main(self, *args: Any, **options: Any) -> Any:
        _fill_streams()
        with _dropped_interrupts_come_again():
            return super().main(*args, **options)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _stopped_is_130(), one_line():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _stopped_is_130(), one_line():
            return super().invoke(ctx)


@contextlib.contextmanager
def _stopped_is_130() -> Iterator[None]:
    """click ends with 1 after Ctrl-C, like a failure."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        raise click.exceptions.Exit(EXIT_STOPPED) from None


def _fill_streams() -> None:
    """Put the null device where a standard stream is closed: a file that is opened next would take its number, and be
    written into. Exits with 1 when standard output is closed: there is no place for an answer."""
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) < _STREAMS:
            os.set_inheritable(number, True)
        os.close(number)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    if sys.stdout is None:
        click.echo("Error: standard output is closed; open it, or send it to a file", err=True)
        raise SystemExit(1)


@contextlib.contextmanager
def _dropped_interrupts_come_again() -> Iterator[None]:
    """Python prints and drops what is raised inside a callback of a C library, a finalizer or a collection of garbage.
    Of an interrupt nothing is printed, and it is sent again, until it arrives where it is heard."""
    before = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        timer = threading.Timer(_AGAIN, _thread.interrupt_main)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
