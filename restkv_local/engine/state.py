"""Saved states: the cells of a cache, its tokens and the logits of the last one; no copy of a score array."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, EvictionError
from ..native.binding import c


@dataclass
class EngineState:
    """What Engine.save_state returns. It has the fields that llama-cpp-python's caches read from a LlamaState.

    made_by: the settings that must be the same where it is loaded. logits: [n_vocab] after the last token, or None.
    """

    input_ids: npt.NDArray[np.intc]
    n_tokens: int
    llama_state: bytes | bytearray
    llama_state_size: int
    seed: int
    made_by: dict[str, Any] = field(default_factory=dict)
    logits: npt.NDArray[np.float32] | None = None

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Never kept; only for the shape of a LlamaState."""
        return np.empty((0, 0), dtype=np.float32)


def read_blob(ctx: Any) -> bytearray:
    """The state of a llama_context. One buffer, not three copies."""
    size = c.llama_state_get_size(ctx)
    blob = bytearray(size)
    view = (ctypes.c_uint8 * size).from_buffer(blob)
    written = c.llama_state_get_data(ctx, view, size)
    del view
    if not 0 < written <= size:
        raise EvictionError("the state of the cache cannot be read; nothing was saved")
    del blob[written:]
    return blob


def check_origin(state: Any, here: dict[str, Any]) -> None:
    """Refuse a state that another model or another cache made; says what differs."""
    origin = getattr(state, "made_by", None)
    if not isinstance(origin, dict):
        raise ConfigError("this state was not saved by an Engine; read the text again instead")
    for name, value in here.items():
        if origin.get(name) != value:
            raise ConfigError(
                f"this state was saved with {name} {origin.get(name)} and this engine has {value}; "
                f"load it into an engine with the same settings"
            )


def write_blob(ctx: Any, blob: bytes | bytearray) -> bool:
    """Load a state into a llama_context; False when it does not fit."""
    size = len(blob)
    # from_buffer needs a writable buffer; a copy is made only of immutable bytes
    holder = blob if isinstance(blob, bytearray) else bytearray(blob)
    return bool(size and c.llama_state_set_data(ctx, (ctypes.c_uint8 * size).from_buffer(holder), size) == size)
