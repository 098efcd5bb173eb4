"""llama_cpp on the patched library: import it from here, so that the library is chosen before the bindings load."""

from __future__ import annotations

from .. import native
from . import quiet

LIBRARY = native.lib()

import llama_cpp.llama as llama_module  # noqa: E402
from llama_cpp import _internals as internals  # noqa: E402
from llama_cpp import llama_cpp as c  # noqa: E402
from llama_cpp.llama import Llama  # noqa: E402

quiet.install(c._lib)

__all__ = ["LIBRARY", "Llama", "c", "internals", "llama_module"]
