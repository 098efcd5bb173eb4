"""An engine's base: a Llama on an evicting cache, its queue of callers, its facts and its logits."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..check.first_load import trust_devices
from ..config import DEFAULT_BATCH, DEFAULT_CONTEXT, EvictConfig
from ..errors import BusyError
from ..native import interrupts, quiet
from ..native.binding import LIBRARY, Llama, c
from ..plan.memory import KvType
from ..sampling import check_sampling
from . import at_exit
from .ahead import look_ahead
from .answers import seeds
from .answers.chat_templates import add_formats
from .archive import WorkingFile
from .construct import construct
from .facts import Facts
from .guard import closed
from .logits import LogitRows, rows
from .options import cache_folder, check_options, default_threads, default_threads_batch, sampling_of
from .queueing import Queue
from .report import Eviction, Report, Turn
from .sources import check_queries
from .state import made_of

if TYPE_CHECKING:
    from typing_extensions import Self

LOGGER = logging.getLogger("restkv_local")


class Core(Llama):  # type: ignore[misc, unused-ignore]
    """What an engine is, before it reads: see Engine for the arguments."""

    n_tokens: int
    _closed: bool = False
    _in_callback: bool = False  # a function of the caller runs inside a call

    @interrupts.lately
    def __init__(
        self,
        model_path: str | os.PathLike[str] | None = None,
        n_ctx: int = DEFAULT_CONTEXT,
        evict: EvictConfig | None = None,
        *,
        kv_type: KvType = "f16",
        on_load: Callable[[float], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_evict: Callable[[Eviction], None] | None = None,
        on_notice: Callable[[str], None] | None = None,
        n_batch: int = DEFAULT_BATCH,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        seed: int | None = None,
        sources: bool = False,
        verbose: bool = False,
        **llama: Any,
    ) -> None:
        evict = evict or EvictConfig()
        check_options(evict, llama, n_threads=n_threads, n_gpu_layers=n_gpu_layers)
        if sources:
            check_queries(evict)
        if verbose:
            quiet.show()
        self.evict = evict
        self.guide: str | None = None
        self.on_progress, self.on_evict, self.on_notice = on_progress, on_evict, on_notice
        first_seed = seeds.fixed(seed)
        ahead = look_ahead(
            model_path, n_ctx, evict, llama, kv_type=kv_type, n_batch=n_batch, n_gpu_layers=n_gpu_layers
        )
        path, self.plan = ahead.path, ahead.plan
        self._arguments: dict[str, Any] = {
            **llama,
            "model_path": str(path),
            "n_ctx": n_ctx,
            "evict": evict,
            "kv_type": self.plan.kv_types,
            "n_batch": n_batch,
            "n_threads": n_threads,
            "n_gpu_layers": n_gpu_layers,
            "seed": seed,
            "sources": sources,
            "verbose": verbose,
        }
        self._queue = Queue()
        self._turn = Turn()
        self._notices: list[str] = []
        self._restored: npt.NDArray[np.float32] | None = None
        self._generating = False
        self._follows = sources
        self._asked: str | None = None
        self._guide_now: str | None = None  # of the call that runs
        self._pending_reason: str | None = None
        self._stop = ctypes.c_int32(0)
        self._facts: Facts | None = None

        threads = n_threads or default_threads()
        threads_batch = llama.pop("n_threads_batch", None) or n_threads or default_threads_batch()
        params = None
        if evict.method != "full":
            params = native.params_from(
                evict, budget=self.plan.budget, capacity=self.plan.capacity, n_threads=threads_batch
            )

        on_device = self.plan.gpu_layers != 0 and llama.get("offload_kqv", True)
        interrupts.check()
        wrong = trust_devices() if params is not None and on_device and evict.stages in ("auto", "graph") else []

        working = self._working = WorkingFile(self.plan.archive)

        def arm() -> None:
            if params is not None:
                native.check(LIBRARY.restkv_arm(ctypes.byref(params), os.fsencode(path), cache_folder()))
                native.arm_shares(evict, self.plan.shares)
                native.arm_archive(self.plan.archive, ahead.archived, working.path)

        try:
            construct(
                self,
                path,
                arm,
                {
                    "swa_full": False,  # sliding windows need their window only
                    **llama,
                    "n_ctx": self.plan.context,
                    "n_batch": self.plan.n_batch,
                    "n_threads": threads,
                    "n_threads_batch": threads_batch,
                    "n_gpu_layers": self.plan.gpu_layers,
                    "type_k": ahead.type_k,
                    "type_v": ahead.type_v,
                    "flash_attn": True,
                    "verbose": verbose,
                },
                on_load,
            )
            working.made()
            self._made_of = made_of(path, llama)
            self._seed = first_seed  # Llama takes 0 for "no seed"
            untemplated = add_formats(self, llama.get("chat_format"))
            self._facts = Facts(self._ctx.ctx, self.plan, working.found_at)
            at_exit.watch(self)
            self._abort = ctypes.cast(LIBRARY.restkv_abort_on_flag, c.ggml_abort_callback)
            c.llama_set_abort_callback(self._ctx.ctx, self._abort, ctypes.addressof(self._stop))
            self._facts.look()
            for notice in (ahead.notice, untemplated):
                if notice:
                    self._notice(notice)
            if wrong and self._facts.backend_reason:  # of a device that holds layers
                self._notice(f"evictions do not run as graphs where the cache lives: {self._facts.backend_reason}")
        except BaseException:
            self.close()
            working.remove()  # close() does nothing before llama_cpp's own part exists
            raise

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Any:
        check_sampling(sampling_of(args, kwargs))  # for `sample` without `generate`
        return super()._init_sampler(*args, **kwargs)

    # ---- stopping ------------------------------------------------------------------------------

    @property
    def working(self) -> bool:
        """Whether a thread is inside a call now; a suspended stream is not."""
        return self._queue.working

    def cancel(self) -> None:
        """Stop the prefill or the answer that runs, within one ubatch; it raises Cancelled. Idle: does nothing."""
        if self._queue.busy:
            self._stop.value = 1

    def _uncancel(self) -> None:
        self._stop.value = 0

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """A whole call in one block, or a part of the call that this thread is in."""
        outermost = not self._queue.nested
        with self._queue.hold():
            self._facts_open  # noqa: B018 (raises when closed)
            if outermost:
                self._uncancel()
            try:
                yield
            finally:
                if outermost:
                    self._uncancel()

    @contextlib.contextmanager
    def _callback(self) -> Iterator[None]:
        """The block in which a caller's function runs inside a call: it may look at the engine, see guard.py."""
        before, self._in_callback = self._in_callback, True
        try:
            yield
        finally:
            self._in_callback = before

    def _as_callback(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            with self._callback():
                return function(*args)

        return called

    def __enter__(self) -> Self:
        """The engine; it is closed at the end of the block. Raises ClosedError."""
        self._facts_open  # noqa: B018 (raises when closed)
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    @interrupts.lately
    def close(self) -> None:
        """Free the model and the cache, after what runs has been cancelled; a second call does nothing."""
        queue, stack = getattr(self, "_queue", None), getattr(self, "_stack", None)
        if stack is None or queue is None:
            return
        if queue.nested:  # not from a callback, which guard.py refuses: from what a callback uses
            raise BusyError("close() inside a call of the engine would free what it works on; use cancel() there")
        self.cancel()
        with queue.pause(wait=True):
            self._facts, self._closed = None, True
            stack.close()
            self._working.remove()
            queue.release()

    # ---- facts ---------------------------------------------------------------------------------

    @property
    def _facts_open(self) -> Facts:
        if self._facts is None:
            raise closed()
        return self._facts

    @property
    def cells(self) -> int:
        """Cells in use, per layer and KV head; while another thread reads, as of its last chunk."""
        return self.report().cells

    def kept(self, layer: int, head: int) -> npt.NDArray[np.int32]:
        """Positions that a KV head of a layer (index in the model) holds, ascending. Raises ConfigError."""
        with self._call():
            return self._facts_open.kept(layer, head)

    def report(self) -> Report:
        """What was evicted, where, how long it took, and the figures of the last turn; while another thread reads,
        as of its last chunk."""
        with self._queue.pause() as idle:
            if idle:
                self._facts_open.look()
            return self._facts_open.report(self._turn, self._notices)

    def _notice(self, text: str) -> None:
        if text not in self._notices:
            self._announce(text)

    def _announce(self, text: str) -> None:
        self._notices.append(text)
        LOGGER.info("%s", text)
        if self.on_notice is not None:
            with self._callback():
                self.on_notice(text)

    # ---- logits --------------------------------------------------------------------------------

    @property
    def scores(self) -> LogitRows:
        """Logits by position [position, n_vocab], of the last token only."""
        return rows(self._last_logits()[None, :], max(0, self.n_tokens - 1))

    @scores.setter
    def scores(self, value: object) -> None:
        """Llama.__init__ makes an array of n_batch x n_vocab here, which nobody reads: let it go."""

    def _last_logits(self) -> npt.NDArray[np.float32]:
        """A copy of the logits [n_vocab] after the last token; zeros before any was read."""
        if self._restored is not None:
            return self._restored.copy()
        if self._requires_eval:
            return np.zeros(self._n_vocab, dtype=np.float32)
        pointer = c.llama_get_logits_ith(self._ctx.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(self._n_vocab,)).copy()

    def __getstate__(self) -> dict[str, Any]:
        return dict(self._arguments)
