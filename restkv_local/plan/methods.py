"""What a method needs and what it takes for granted, known without the library (native/methods has the same rows)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Queries = Literal["none", "last", "window", "all"]


@dataclass(frozen=True)
class Traits:
    """A method's needs.

    queries: whose attention it looks at: of nobody, the last token, the window, or every token of the text.
    pooling, kernel: of its published form, when nothing else is set; "none" and 1 for methods whose scores are not
        smoothed along the text (`pools`).
    per_layer: the KV heads of a layer keep one set.
    """

    queries: Queries = "none"
    pools: bool = False
    pooling: str = "none"
    kernel: int = 1
    per_layer: bool = False


# Kernel 21 of ReST-KV, because retrieval of a single fact hangs on its neighbours being kept: 5 loses a pass key at 256
# cells where 13 to 41 keep it.
TRAITS: dict[str, Traits] = {
    "restkv": Traits(queries="window", pools=True, pooling="adaptive", kernel=21),
    "snapkv": Traits(queries="window", pools=True, pooling="avgpool", kernel=5),
    "tova": Traits(queries="last", per_layer=True),
    "h2o": Traits(queries="all"),
    "streamingllm": Traits(),
    "lacache": Traits(),
    "fifo": Traits(),
    "random": Traits(),
    "keydiff": Traits(),
    "knorm": Traits(),
}
