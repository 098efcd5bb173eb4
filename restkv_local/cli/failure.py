"""Expected failures become one line for people; RESTKV_RAISE=1 brings the traceback back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import click

from ..errors import Cancelled, RestkvError
from .words import in_options

RAISE_VARIABLE = "RESTKV_RAISE"


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Turn the failures of the engine, the model file and the system into `click.ClickException`.

    A mistake in this program (TypeError, KeyError, ...) keeps its traceback.
    """
    if os.environ.get(RAISE_VARIABLE) == "1":
        yield
        return
    try:
        yield
    except (Cancelled, click.exceptions.Exit, click.exceptions.Abort):  # click's two are RuntimeErrors
        raise
    except RestkvError as error:
        raise click.ClickException(_flat(error)) from error
    except BrokenPipeError:
        raise
    except MemoryError as error:
        raise click.ClickException("not enough memory; choose a smaller --context, --budget or model") from error
    except (OSError, ValueError, RuntimeError) as error:
        # llama-cpp-python reports a bad model file or a failed decode as bare ValueError and RuntimeError.
        raise click.ClickException(f"{_flat(error)} ({RAISE_VARIABLE}=1 shows where)") from error


def _flat(error: BaseException) -> str:
    return in_options(" ".join(str(error).split())) or type(error).__name__


class Command(click.Command):
    """A command whose expected failures are one line."""

    def invoke(self, ctx: click.Context) -> Any:
        with one_line():
            return super().invoke(ctx)

