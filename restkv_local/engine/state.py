"""Saved states: the cells of a cache, its tokens and the logits of the last one; no copy of a score array."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..errors import ConfigError, EvictionError
from ..models.fingerprint import fingerprint
from ..native import quiet
from ..native.binding import c
from ..plan.memory import MemoryPlan

# Settings of a context that turn its keys.
_ROPE = (
    "rope_scaling_type", "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast",
    "yarn_beta_slow", "yarn_orig_ctx",
)  # fmt: skip


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


def check_no_archive(plan: MemoryPlan) -> None:
    """Refuse states of an engine with an archive: after them a recall would miss what they do not hold."""
    if plan.archive is not None:
        raise ConfigError(
            "a state does not hold the archive: use save_session and load_session, or make the engine with "
            "archive='none'"
        )


def origin(engine: Any, made_of: dict[str, Any]) -> dict[str, Any]:
    """What must be the same where a state of this engine is loaded: the weights, how positions turn keys, the cache.

    made_of: fingerprints of the files of the model, as made_of() gives them.
    """
    plan, params = engine.plan, engine.context_params
    trained = engine.metadata.get(f"{plan.arch}.rope.scaling.original_context_length", "")
    evicting = {} if plan.method == "full" else {"budget": plan.budget, "window": plan.window}
    return {
        "model": engine._model.desc(),
        **made_of,
        "rope": tuple(getattr(params, name) for name in _ROPE),
        # such models have two sets of factors, and the context decides between them
        "long rope factors": trained.isdecimal() and plan.context > int(trained),
        "method": plan.method,
        "kv_type": plan.kv_types,
        "capacity": plan.capacity,
        **evicting,
        "allocation": plan.allocation,
    }


def made_of(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Fingerprints of a model's files, and what changes its weights or its metadata. options: those of llama_cpp.Llama.

    Raises ModelError for a file that cannot be read.
    """
    lora = options.get("lora_path")
    return {
        "fingerprint": fingerprint(path),
        "lora": (fingerprint(lora), options.get("lora_scale", 1.0)) if lora else None,
        "kv_overrides": sorted((options.get("kv_overrides") or {}).items()),
    }


def check_origin(state: Any, here: dict[str, Any]) -> None:
    """Refuse a state that another model or another cache made; says what differs."""
    there = getattr(state, "made_by", None)
    if not isinstance(there, dict):
        raise ConfigError("this state was not saved by an Engine; read the text again instead")
    for name, value in here.items():
        if name not in there or there[name] != value:
            same = "of the same model" if name in ("model", "fingerprint", "lora") else "with the same settings"
            raise ConfigError(
                f"this state was saved with {name} {there.get(name)} and this engine has {value}; "
                f"load it into an engine {same}"
            )


def check_tokens(state: Any, n_vocab: int) -> None:
    """Refuse a state whose tokens or logits are not those of n_tokens positions."""
    ids, logits = np.asarray(state.input_ids), state.logits
    fits = ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer) and 0 <= state.n_tokens <= len(ids)
    if fits and state.n_tokens:
        ids = ids[: state.n_tokens]
        fits = 0 <= int(ids.min()) and int(ids.max()) < n_vocab
    if not fits or (logits is not None and np.shape(logits) != (n_vocab,)):
        raise ConfigError("this state is damaged: its tokens do not fit the model; read the text again instead")


def write_blob(ctx: Any, blob: bytes | bytearray) -> None:
    """Load a state into a llama_context. One that does not fit raises ConfigError with the reason, and may leave cells
    that mean nothing: clear them."""
    size = len(blob)
    # from_buffer needs a writable buffer; a copy is made only of immutable bytes
    holder = blob if isinstance(blob, bytearray) else bytearray(blob)
    native.forget_failure()
    with quiet.capture() as log:
        read = c.llama_state_set_data(ctx, (ctypes.c_uint8 * size).from_buffer(holder), size) if size else 0
    if size and read == size:
        return
    failed = native.failure()
    reason = failed.reason if failed else log[-1] if log else "it ends too early"
    kind = native.error_type(failed.status) if failed else ConfigError
    raise kind(f"this state is damaged or of another cache ({reason}); read the text again instead")
