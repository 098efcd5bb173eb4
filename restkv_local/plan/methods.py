"""The row of every method: what it needs and what it takes for granted, known without the library.

native/methods has the same rows for the library, restkv_local/reference/methods those of the reference. Nothing else in
the package knows a method by its name, but for the default and "full".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Method = Literal[
    "restkv", "snapkv", "tova", "h2o", "streamingllm", "lacache", "fifo", "random", "keydiff", "knorm", "full"
]
Queries = Literal["none", "last", "window", "all"]
Budgets = Literal["any", "layer", "one"]
Window = Literal["set", "newest", "rest"]


@dataclass(frozen=True)
class Traits:
    """A method's needs.

    source: who published it; of one without a paper, what it is for.
    queries: whose attention it looks at: of nobody, the last token, the window, or every token of the text, which then
        all vote once.
    keys: it looks at the keys.
    wo: it may need W_o: the score is the change of the output.
    pooling, kernel: of its published form, when nothing else is set; "none" and 1 for methods whose scores are not
        smoothed along the text (`pools`).
    per_layer: the KV heads of a layer keep one set.
    budgets: which it works with. "any": every layer and KV head may have its own; "layer": every layer, but all
        heads keep the same cells; "one": one for all, as the heads keep one set, or votes and ladder count on it.
    window: the last cells that are always kept. "set": as many as are set; "newest": one; "rest": what the sinks leave
        of the budget.
    sinks: it keeps the first cells of the text, too.
    ladder: each layer keeps other cells (restkv_local.plan.ladder).
    time: what an eviction of n cells computes; "": what its queries say.
    """

    source: str = ""
    queries: Queries = "none"
    keys: bool = False
    wo: bool = False
    pools: bool = False
    pooling: str = "none"
    kernel: int = 1
    per_layer: bool = False
    budgets: Budgets = "any"
    window: Window = "set"
    sinks: bool = False
    ladder: bool = False
    time: str = ""

    @property
    def votes(self) -> bool:
        """Whether every query votes once, when it is read: votes are kept beside the cells."""
        return self.queries == "all"


# Kernel 21 of ReST-KV, because retrieval of a single fact hangs on its neighbours being kept: 5 loses a pass key at 256
# cells where 13 to 41 keep it.
TRAITS: dict[str, Traits] = {
    "restkv": Traits(
        "ReST-KV, ICLR 2026", queries="window", wo=True, pools=True, pooling="adaptive", kernel=21,
        time="attention of the window over n cells; n distances behind W_o",
    ),
    "snapkv": Traits("SnapKV, Li et al., 2024", queries="window", pools=True, pooling="avgpool", kernel=5),
    "tova": Traits("TOVA, Oren et al., 2024", queries="last", per_layer=True, budgets="one", window="newest"),
    "h2o": Traits("H2O, Zhang et al., 2023", queries="all", budgets="one"),
    "streamingllm": Traits("StreamingLLM, Xiao et al., 2024", budgets="layer", window="rest", sinks=True),
    "lacache": Traits("LaCache, Shi et al., 2025", budgets="one", sinks=True, ladder=True),
    "fifo": Traits("no paper: a sliding window", budgets="one"),
    "random": Traits("no paper: the yardstick that a method must beat"),
    "keydiff": Traits("KeyDiff, Park et al., 2025", keys=True, time="two passes over the keys"),
    "knorm": Traits("L2-norm, Devoto et al., 2024", keys=True, time="one pass over the keys"),
}  # fmt: skip
