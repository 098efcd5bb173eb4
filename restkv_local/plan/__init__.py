"""What will be allocated where, said before anything is loaded.

    from restkv_local.plan import plan
    print(plan("model.gguf", n_ctx=131072).summary)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engine.ahead import plan

__all__ = ["plan"]


def __getattr__(name: str) -> Any:
    # the settings need this folder, and `plan` needs the library
    if name == "plan":
        from ..engine.ahead import plan

        return plan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
