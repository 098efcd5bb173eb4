"""An engine for tests of the command lines: answers from the prompt, with the timing and the callbacks of a real one.

Run as a program it is restkv-chat on this engine.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from restkv_local.config import EvictConfig
from restkv_local.engine.report import Report, Source
from restkv_local.engine.session_file import SECTIONS, write_session
from restkv_local.engine.session_header import SavedSession, look
from restkv_local.errors import Cancelled, ContextOverflow

# The longest wait of a step; small, so that a cancel is seen at once.
_STEP = 0.02


class FakeEngine:
    """Reads words as tokens. "slow" in a question makes reading slow, "long" makes the answer long; "lazy" and "wordy"
    do so when the question is asked a second time. Roles must alternate, as many chat templates want it.

    "stuck" makes the answer repeat itself, "nothing" makes it empty, "blank" makes it begin with blanks, and at most
    max_tokens pieces are said. A model named "slow.gguf" takes its time to load. instances: every engine made, for
    tests in the same process; described: metadata of their models.
    """

    instances: list[FakeEngine] = []
    capacity = 64
    described: dict[str, str] = {}

    def __init__(
        self,
        model_path: str | None = None,
        n_ctx: int = 4096,
        evict: EvictConfig | None = None,
        *,
        kv_type: Any = "f16",
        on_progress: Callable[[int, int], None] | None = None,
        on_evict: Callable[[Any], None] | None = None,
        on_notice: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        if model_path == "broken.gguf":
            raise ValueError("Failed to load model from file: broken.gguf")
        if model_path == "slow.gguf":
            time.sleep(20)
        self.model, self.n_ctx, self.evict = model_path, n_ctx, evict or EvictConfig()
        self.metadata: dict[str, str] = dict(self.described)
        self.options = {"kv_type": kv_type, **options}
        self.chat_format, self.chat_handler = options.get("chat_format"), None
        self._chat_handlers = {"qa": self.create_chat_completion}
        self.guide: str | None = None
        self.requests: list[dict[str, Any]] = []
        self.guides: list[str | None] = []
        self.closed = False
        self._cancel = threading.Event()
        self._progress = on_progress or (lambda done, total: None)
        self._figures = {"positions": 0, "n_evictions": 0, "prompt_tokens": 0, "read_tokens": 0, "completion_tokens": 0}
        if on_notice:
            on_notice("a notice of the engine")
        FakeEngine.instances.append(self)

    def cancel(self) -> None:
        self._cancel.set()

    def close(self) -> None:
        self.closed = True

    def _step(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._cancel.wait(_STEP):
                raise Cancelled("stopped")

    def create_chat_completion(
        self, messages: list[dict[str, str]], stream: bool = False, **options: Any
    ) -> Iterator[dict[str, Any]]:
        assert stream
        self._cancel.clear()
        self.requests.append({"messages": [dict(message) for message in messages], **options})
        self.guides.append(self.guide)
        roles = [message["role"] for message in messages if message["role"] != "system"]
        if roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
            raise ValueError("roles must alternate: " + ", ".join(roles))
        question = messages[-1]["content"]
        second = [request["messages"] for request in self.requests].count(self.requests[-1]["messages"]) > 1
        slow = "slow" in question or second and "lazy" in question
        long = "long" in question or second and "wordy" in question
        words = sum(len(message["content"].split()) for message in messages)
        if words > self.n_ctx:
            raise ContextOverflow(f"Requested tokens ({words}) exceed n_ctx {self.n_ctx}", words, self.n_ctx)
        self._progress(0, words)
        for done in range(0, words, max(1, words // 20)):
            self._step(0.5 if slow else 0)
            self._progress(done, words)
        self._progress(words, words)
        evictions = words // self.capacity
        if "nothing" in question:
            yield _chunk({}, "stop")
            return
        reply = ["I", " heard:", " ", question.split("\n")[-1]] + [" and"] * (1000 if long else 0)
        reply = [" ", "\n", *reply] if "blank" in question else reply
        reply += [" over and over."] * 1000 if "stuck" in question else []
        limit = min(options.get("max_tokens") or len(reply), self.n_ctx - words)
        self._figures |= {"prompt_tokens": words, "read_tokens": words, "completion_tokens": 0, "positions": words}
        self._figures["n_evictions"] += evictions
        yield _chunk({"role": "assistant"})
        for piece in reply[:limit]:
            self._step(0.05 if long else 0)
            self._figures["completion_tokens"] += 1
            self._figures["positions"] += 1
            yield _chunk({"content": piece})
        yield _chunk({}, "stop" if limit >= len(reply) else "length")

    def sources(self) -> tuple[Source, ...]:
        """The last question, which the answer repeats; hardly, when it says that it is weak."""
        text = self.requests[-1]["messages"][-1]["content"]
        self._figures |= {"sources_tokens": self._figures["completion_tokens"] - 1, "sources_reason": None}
        return (Source(0, len(text), text, (0, len(text.split())), 0.15 if "weak" in text else 0.9),)

    def save_session(self, path: Path, *, messages: list[Any], notes: dict[str, Any]) -> SavedSession:
        header = {
            "tokens": self._figures["positions"], "rows": 0, "seed": 0, "archive": None, "evicted": False, "origin": {},
            "messages": messages, "notes": notes, "model": "fake.gguf", "saved": "2026-01-02T03:04:05+00:00",
        }  # fmt: skip
        write_session(path, header, {name: (0, []) for name in SECTIONS})
        return replace(look(path), seconds=0.01)

    def load_session(self, path: Path) -> SavedSession:
        found = look(path)
        self._figures["positions"] = found.tokens
        return replace(found, seconds=0.01)

    def report(self) -> Report:
        return Report(
            model=self.model or "embedded", arch="fake", method=self.evict.method, prefill=self.evict.prefill_used,
            prefill_used="none", backend="fake", context=self.n_ctx, budget=48, reserve=16, capacity=self.capacity,
            window=32, kv_bytes=6400, ring_bytes=1, table_bytes=2, wo_bytes=3, sums_bytes=0, cells=32, evictions=[],
            reused_tokens=0, reevaluated=None, prefill_seconds=0.5, evict_seconds=0.1, decode_seconds=0.25,
            notices=[], **self._figures,
        )  # fmt: skip


def _chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


if __name__ == "__main__":
    from restkv_local.cli.chat.main import main

    os.environ.pop("RESTKV_RAISE", None)
    if os.environ.get("RESTKV_FAKE_READY"):
        print("ready", file=sys.stderr, flush=True)
    main(obj={"engine": FakeEngine})
