"""The engine in torch: a GGUF model whose KV cache evicts, to check the native one against.

It does what the native engine does, in float32 and one obvious step after another: chunks are appended at their true
positions; when the free cells do not hold a chunk, every full-attention layer is evicted once, down to the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..config import EvictConfig
from ..errors import ConfigError, EvictionError
from ..plan.allocation import Shares, share_out
from ..plan.ladder import plan_ladder
from .cache import LayerCache
from .evict import Place, survivors
from .forward import Transformer


class ReferenceEngine:
    """A model with an evicting cache.

    path: GGUF file, or a Transformer to share its weights between engines. budget: cells per KV head and
    full-attention layer that survive an eviction, window included; None: never evict. capacity: physical cells, None:
    no limit (only `evict` evicts). config: how cells are scored; its own budget is not read. type_k, type_v: how the
    cache stores rows ("f32", "f16", "bf16", "q8_0", "q4_0").
    Sliding-window layers see their window and are never evicted.
    Raises ModelError for a file or family it cannot run, ConfigError for a budget that does not fit.
    """

    def __init__(
        self,
        path: str | Path | Transformer,
        budget: int | None = None,
        capacity: int | None = None,
        config: EvictConfig | None = None,
        *,
        type_k: str = "f16",
        type_v: str = "f16",
        n_ctx: int | None = None,
        round_activations: bool = True,
    ) -> None:
        self.config = EvictConfig() if config is None else config
        if isinstance(path, Transformer):
            self.model = path
        else:
            self.model = Transformer(path, n_ctx=n_ctx, round_activations=round_activations)
        self.budget = None if self.config.method == "full" else budget
        self.capacity = capacity
        least = self.config.budget_min
        if self.budget is not None and self.budget < least:
            raise ConfigError(f"budget must be at least {least} with these settings; got {self.budget}")
        if self.budget is not None and capacity is not None and capacity <= self.budget:
            raise ConfigError(f"capacity must be above the budget of {self.budget} cells; got {capacity}")
        spec = self.model.spec
        self.shares: Shares | None = None
        self._full = [il for il in range(spec.n_layer) if not spec.swa[il]]
        if self.budget is not None and not self._full:
            raise ConfigError("every layer of this model has a sliding window; there is nothing to evict")
        if self.budget is not None:
            self.shares = share_out(self.config, self.budget, len(self._full), spec.n_head_kv[self._full[0]])
        window = self.config.window if self.budget is None else self.config.window_cells(self.budget)
        self._caches = [
            LayerCache(spec.n_head[il], spec.n_head_kv[il], spec.head_dim, window, type_k, type_v)
            for il in range(spec.n_layer)
        ]
        self.n_tokens = 0
        self.n_evictions = 0
        self._cursor = 0  # of a ladder
        self._n_tail = 0  # tokens since the last eviction: heads differ in the others, so no guide reaches back there

    @property
    def cells(self) -> int:
        """Cells in use per KV head of a full-attention layer, on average (positions, when there is no such layer)."""
        if not self._full:
            return self.n_tokens
        held = [self._caches[il].held for il in self._full]
        return sum(map(sum, held)) // sum(map(len, held))

    def kept(self, layer: int, head: int) -> np.ndarray:
        """Positions that a KV head of a layer holds, ascending, int32."""
        pos = self._caches[layer].pos[head].numpy()
        return pos[pos >= 0].astype(np.int32)

    def decode(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens at the next positions; their logits [n, n_vocab] float32.

        Evicts first when the tokens do not fit the free cells. Raises EvictionError when they do not fit after that.
        """
        n = len(tokens)
        if n == 0:
            raise ConfigError("decode needs at least one token")
        self._make_room(n)
        spec = self.model.spec
        with torch.inference_mode():
            pos = torch.arange(self.n_tokens, self.n_tokens + n)
            x = self.model.embed(torch.tensor(list(tokens), dtype=torch.int64))
            for layer, cache in zip(self.model.layers, self._caches, strict=True):
                q, k, v = layer.qkv(x, pos)
                cache.append(q, k, v, pos)
                if self.config.traits.votes and not layer.swa:
                    cache.vote(q, pos, scale=spec.attn_scale, softcap=spec.attn_softcap, sinks=layer.sinks)
                heads = cache.attend(q, pos, scale=spec.attn_scale, softcap=spec.attn_softcap, sinks=layer.sinks,
                                     n_swa=spec.n_swa if layer.swa else 0)  # fmt: skip
                x = layer.finish(x, heads)
            self.n_tokens += n
            self._n_tail += n
            logits: np.ndarray = self.model.logits(x).numpy()
        return logits

    def evict(self, n_guide: int = 0) -> bool:
        """Evict now, down to the budget; False when the cache is within it (nothing has to go).

        n_guide: the last tokens are a guide (a question): their queries score, then their cells are dropped in every
        layer and the next token takes their first position, also when nothing else is evicted.
        """
        if self.budget is None:
            raise ConfigError("this engine never evicts; give it a budget")
        most = max(0, min(self.n_tokens - 1, self._n_tail))
        if not 0 <= n_guide <= most:
            raise ConfigError(f"n_guide must be from 0 to {most}, the tokens since the last eviction; got {n_guide}")
        evicts = self._n_tail - n_guide > (self._first if self.n_evictions == 0 else 0)
        with torch.inference_mode():
            if evicts:
                n_doc = self.cells - n_guide
                for il in self._full:
                    self._evict_layer(il, n_guide)
                if self.config.traits.ladder:
                    c = self.config
                    ladder = plan_ladder(len(self._full), self.budget, c.window, c.sinks, c.span, c.overlap)
                    self._cursor = ladder.compact(0, n_doc, self._cursor)[1]
                self.n_evictions += 1
                self._n_tail = n_guide
            self.n_tokens -= n_guide
            self._n_tail -= n_guide
            if n_guide:
                for cache in self._caches:
                    cache.truncate(self.n_tokens)
        return evicts

    def _make_room(self, n: int) -> None:
        if self.capacity is None or n <= self._free:
            return
        if self.budget is not None:
            self.evict()
        if n > self._free:
            raise EvictionError(f"{n} tokens do not fit {self._free} free cells; decode smaller chunks")

    @property
    def _first(self) -> int:
        """Cells that a new text may fill, reserve not counted."""
        return 0 if self.shares is None else self.shares.first

    @property
    def _free(self) -> int:
        """Cells free until the next eviction; with a capacity only."""
        reserve = (self.capacity or 0) - (self.budget or 0)
        return reserve - self._n_tail + (self._first if self.n_evictions == 0 else 0)

    def _evict_layer(self, il: int, n_guide: int) -> None:
        spec, layer, cache = self.model.spec, self.model.layers[il], self._caches[il]
        assert self.budget is not None and self.shares is not None
        cache.keep(survivors(
            cache, self.config, budget=self.budget, own=self.shares.layers[self._full.index(il)],
            rows=self.shares.rows, n_guide=n_guide, layer=il,
            place=Place(self._full.index(il), len(self._full), self._cursor), wo=layer.wo.weight,
            attn_scale=spec.attn_scale, softcap=spec.attn_softcap, sinks=layer.sinks,
        ))  # fmt: skip
