"""Llama.__init__ without what it does to memory and to the file descriptors of the process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import native
from ..errors import EvictionError, ModelError
from ..models.files import load_failure
from ..native import interrupts, quiet
from ..native.binding import LIBRARY, Llama, c, internals, llama_module
from ..plan.memory import Probe
from .answers.chat_templates import formats
from .guard import Freed
from .vocabulary import Model


class _FileName(str):
    """A path that llama_cpp can hand on: it calls encode("utf-8"), which fails where a name is not UTF-8."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


class _Context(Freed, internals.LlamaContext):  # type: ignore[misc, unused-ignore]
    _POINTERS = ("ctx", "memory")


def _goes_on(progress: float, data: object) -> bool:
    """Asked by llama.cpp while it reads weights, on the thread that loads."""
    return not interrupts.came()


_progress = c.llama_progress_callback(_goes_on)


def probe_model(path: Path, type_k: int, type_v: int, archive: tuple[int, int] | None = None) -> Probe:
    """Read what the plan needs from a model file, without its weights. type_k, type_v: ggml types; archive: of an
    archive's rows, where they are others.

    Raises ModelError for a file that llama.cpp cannot load, and Cancelled when Ctrl-C came meanwhile.
    """
    quiet.install(c._lib)  # again, in case the host program set a callback of its own since
    c.llama_backend_init()
    params = c.llama_model_default_params()
    params.no_alloc = True
    params.n_gpu_layers = 0
    params.load_mode = c.LLAMA_LOAD_MODE_NONE
    params.progress_callback = _progress
    with quiet.capture() as log:
        model = c.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        interrupts.check()
        raise load_failure(path, log)
    try:
        info = _ask(model, (type_k, type_v))
        archived = info if archive is None else _ask(model, archive)
        weights = int(c.llama_model_size(model))
    finally:
        c.llama_model_free(model)
    values: dict[str, Any] = {name: getattr(info, name) for name, *_ in native.ModelInfo._fields_}
    values.update(arch=info.arch.decode(), refusal=info.refusal.decode(), bytes_weights=weights)
    if archive is not None and not info.refusal:
        values.update(bytes_archived=archived.bytes_per_cell, archive_refusal=archived.refusal.decode())
    return Probe(**values)


def _ask(model: Any, types: tuple[int, int]) -> native.ModelInfo:
    info = native.ModelInfo()
    native.check(LIBRARY.restkv_model_probe(model, *types, ctypes.byref(info)))
    return info


def construct(
    engine: Any,
    path: Path,
    arm: Callable[[], None],
    options: dict[str, Any],
    on_load: Callable[[float], None] | None = None,
) -> None:
    """Run Llama.__init__ on an engine. `arm` is called right before the context is created, on_load with the share of
    the weights that is loaded; both on the same thread. What on_load raises stops the load, and is raised here.

    Llama.__init__ redirects the file descriptors 1 and 2 while it loads, and makes a batch of n_batch x n_ctx sequence
    numbers (256 MiB at 128K). Both come from names of its module, so its code runs here with a namespace of ours,
    in which those names stand for harmless things: nothing is patched in llama_cpp, and no other Llama is affected.
    """

    raised: list[BaseException] = []

    def goes_on(share: float, data: object) -> bool:
        try:
            if on_load is not None:
                on_load(share)
        except BaseException as error:  # ctypes would print and drop it
            raised.append(error)
            return False
        return _goes_on(share, data)

    progress = c.llama_progress_callback(goes_on)

    def make_model(**arguments: Any) -> Any:
        arguments["path_model"] = _FileName(arguments["path_model"])
        arguments["params"].progress_callback = progress
        # verbose=True only means that the file descriptors are left alone
        return Model(**{**arguments, "verbose": True})

    def make_context(**arguments: Any) -> Any:
        interrupts.check()
        native.forget_failure()
        arm()
        try:
            return _Context(**arguments)
        finally:
            LIBRARY.restkv_disarm()

    def make_batch(**arguments: Any) -> Any:
        return internals.LlamaBatch(**{**arguments, "n_seq_max": 1})

    def load_lora(model: Any, lora_path: bytes) -> Any:
        with quiet.capture() as said:
            adapter = c.llama_adapter_lora_init(model, lora_path)
        if not adapter:  # ctypes' null pointer, which Llama.__init__ takes for an adapter
            why = "; ".join(said) or "no reason given"
            raise ModelError(f"lora_path: {os.fsdecode(lora_path)} cannot be used: {why}")
        return adapter

    parts = types.SimpleNamespace(**vars(internals))
    parts.LlamaModel, parts.LlamaContext, parts.LlamaBatch = make_model, make_context, make_batch
    names = {
        **vars(llama_module),
        "internals": parts,
        "llama_chat_format": formats(),
        "llama_cpp": types.SimpleNamespace(**{**vars(c), "llama_adapter_lora_init": load_lora}),
        "suppress_stdout_stderr": lambda disable: contextlib.nullcontext(),
        "set_verbose": lambda verbose: None,
    }
    original = Llama.__init__
    init = types.FunctionType(original.__code__, names, original.__name__, original.__defaults__, original.__closure__)
    init.__kwdefaults__ = original.__kwdefaults__
    if options.get("lora_path"):
        options["lora_path"] = _FileName(options["lora_path"])
    with quiet.capture() as log:
        try:
            init(engine, _FileName(path), **options)
        except ValueError as error:
            interrupts.check()
            if raised:
                raise raised[0] from None
            if "Failed to load model" in str(error):
                raise load_failure(path, log) from None
            if "Failed to create llama_context" in str(error):
                failed = native.failure()
                reason = failed.reason if failed else "; ".join(log[-2:]) or "not enough memory"
                kind = native.error_type(failed.status) if failed else EvictionError
                raise kind(f"{path.name}: the cache cannot be made: {reason}") from None
            raise
