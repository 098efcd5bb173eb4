"""Entry points of the programs. Importing one of them takes a while: Ctrl-C is heard there too."""

from __future__ import annotations

import importlib


def chat() -> None:
    """restkv-chat"""
    _run("chat")


def bench() -> None:
    """restkv-bench"""
    _run("bench")


def evaluation() -> None:
    """restkv-eval"""
    _run("eval")


def _run(module: str) -> None:
    try:
        main = importlib.import_module(f".{module}.main", __package__).main
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # as program.EXIT_STOPPED, which is not imported yet
    main()
