"""What the docs say of a task: one row per task, kept beside the code that makes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """name: of the task. asks: what the model has to do. metric: how an answer is scored, 0 to 1.
    data: "generated", or the local file with its format. max_tokens: most tokens of an answer."""

    name: str
    asks: str
    metric: str
    data: str
    max_tokens: int
