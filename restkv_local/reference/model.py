"""The engine in torch: a GGUF model whose KV cache evicts, to check the native one against.

It does what the native engine does, in float32 and one obvious step after another: chunks are appended at their true
positions; when the free cells do not hold a chunk, every full-attention layer is evicted once, down to the budget. With
an archive nothing that was evicted is gone: a recall chooses the cells again among all positions.
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
from .archive import LayerArchive
from .cache import LayerCache
from .evict import Place, survivors
from .forward import Transformer
from .recall import RecallSettings, likeness, recall_score, restored
from .sources import largest_attention


class ReferenceEngine:
    """A model with an evicting cache.

    path: GGUF file, or a Transformer to share its weights between engines. budget: cells per KV head and
    full-attention layer that survive an eviction, window included; None: never evict. capacity: physical cells, None:
    no limit (only `evict` evicts). config: how cells are scored; its own budget is not read. type_k, type_v: how the
    cache stores rows ("f32", "f16", "bf16", "q8_0", "q4_0").
    archive: whether rows are kept outside the cells, so that `recall`, reading with recall and cuts anywhere work.
    archive_type: how the archive stores them ("auto", "q8_0", "q4_0"). recall_settings: None: the defaults.
    With one, config says how the tokens of an answer recall.
    Sliding-window layers see their window and are never evicted, archived or recalled.
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
        archive: bool = False,
        archive_type: str = "auto",
        recall_settings: RecallSettings | None = None,
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
        self._window = self.config.window if self.budget is None else self.config.window_cells(self.budget)
        self._settings = RecallSettings() if recall_settings is None else recall_settings
        if archive:
            self._check_archive()
        elif self.config.recalls_in_answers:
            raise ConfigError("answers recall from an archive; make the engine with archive=True")
        ring = max(self._window, self._settings.n_guide) if archive else self._window
        self._caches = [
            LayerCache(spec.n_head[il], spec.n_head_kv[il], spec.head_dim, ring, type_k, type_v)
            for il in range(spec.n_layer)
        ]
        self._archives = {
            il: LayerArchive(spec.n_head_kv[il], spec.head_dim, cache.type_k, cache.type_v, archive_type)
            for il, cache in enumerate(self._caches)
            if archive and not spec.swa[il]
        }
        self.n_tokens = 0
        self.n_evictions = 0
        # Position behind the last eviction, 0 while every position is in the cells. The cells before it differ from
        # head to head; those behind it, the tail, do not, so no guide reaches back over it.
        self.pos_exact = 0
        self._cursor = 0  # of a ladder
        # By layer: whose recall its cells are, as the position behind the eviction before it and the last query [H, d].
        self._askers: dict[int, tuple[int, torch.Tensor]] = {}

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

    @property
    def archived(self) -> int:
        """Positions in the archive; 0 without one."""
        return next((archive.n_rows for archive in self._archives.values()), 0)

    def answer(self, token: int) -> np.ndarray:
        """Append a token of an answer, which recalls where config.recall_every and config.recall_below say so; its
        logits [n_vocab]. Raises what `decode` raises."""
        every, below = self.config.recall_every, self.config.recall_below
        whole = every > 0 and (self.n_tokens + 1) % every == 0
        logits: np.ndarray = self.decode([token], recall=whole or below > 0, below=0.0 if whole else below)[0]
        return logits

    def decode(self, tokens: Sequence[int], *, recall: bool = False, below: float = 0.0) -> np.ndarray:
        """Append tokens at the next positions; their logits [n, n_vocab] float32.

        Evicts first when the tokens do not fit the free cells. recall: read them as one chunk with recall: in every
        full-attention layer, before the chunk attends, its queries choose the layer's cells among all positions before
        the tail; and an eviction scores nothing, it drops the tail. below: of a recall; above 0, only those layers
        recall whose cells nobody has chosen since the last eviction, or whose last query is less like the last one that
        did. Raises EvictionError when the tokens do not fit after an eviction, ConfigError for a recall without an
        archive.
        """
        n = len(tokens)
        if n == 0:
            raise ConfigError("decode needs at least one token")
        if recall:
            self._need_archive()
        self._make_room(n, recall)
        spec = self.model.spec
        with torch.inference_mode():
            pos = torch.arange(self.n_tokens, self.n_tokens + n)
            x = self.model.embed(torch.tensor(list(tokens), dtype=torch.int64))
            for il, (layer, cache) in enumerate(zip(self.model.layers, self._caches, strict=True)):
                q, k, v = layer.qkv(x, pos)
                cache.append(q, k, v, pos)
                if recall and self.pos_exact > 0 and not layer.swa and self._asks_anew(il, q, below):
                    self._recall_layer(il, q, pos, self._n_tail + n)
                if self.config.traits.votes and not layer.swa:
                    cache.vote(q, pos, scale=spec.attn_scale, softcap=spec.attn_softcap, sinks=layer.sinks)
                heads = cache.attend(q, pos, scale=spec.attn_scale, softcap=spec.attn_softcap, sinks=layer.sinks,
                                     n_swa=spec.n_swa if layer.swa else 0)  # fmt: skip
                x = layer.finish(x, heads)
            self.n_tokens += n
            logits: np.ndarray = self.model.logits(x).numpy()
        return logits

    def evict(self, n_guide: int = 0) -> bool:
        """Evict now, down to the budget; False when the cache is within it (nothing has to go).

        n_guide: the last tokens are a guide (a question): their queries score, then their cells are dropped in every
        layer and the next token takes their first position, also when nothing else is evicted.
        """
        if self.budget is None:
            raise ConfigError("this engine never evicts; give it a budget")
        self._check_guide(n_guide)
        evicts = self._n_tail - n_guide > self._settled
        with torch.inference_mode():
            if evicts:
                self._archive_tail(n_guide)
                n_doc = self.cells - n_guide
                for il in self._full:
                    self._evict_layer(il, n_guide)
                if self.config.traits.ladder:
                    c = self.config
                    ladder = plan_ladder(len(self._full), self.budget, c.window, c.sinks, c.span, c.overlap)
                    self._cursor = ladder.compact(0, n_doc, self._cursor)[1]
                self.n_evictions += 1
                self.pos_exact = self.n_tokens - n_guide
            self._drop(n_guide)
        return evicts

    def recall(self, n_guide: int = 0) -> bool:
        """Choose the cells of every full-attention layer again, among all that was read; False when all of it is there.

        n_guide: the last tokens are a guide (a question): their queries choose, then they are dropped as `evict` drops
        them, also when nothing is chosen. 0: the last queries of the window choose. Afterwards the next tokens find the
        whole reserve free. Raises ConfigError without an archive, EvictionError when no query is remembered.
        """
        self._need_archive()
        self._check_guide(n_guide)
        recalls = self.pos_exact > 0
        queries = [self._caches[il].last_queries(n_guide or self._window) for il in self._full]
        if recalls and len(queries[0][1]) == 0:
            raise EvictionError("no query is remembered that could choose; decode a token before a recall")
        with torch.inference_mode():
            if recalls:
                self._archive_tail(n_guide)
                for il, (q, q_pos) in zip(self._full, queries, strict=True):
                    self._recall_layer(il, q, q_pos, n_guide)
                self.pos_exact = self.n_tokens - n_guide
                self._askers = {il: (self.pos_exact, q) for il, (_, q) in self._askers.items()}
            self._drop(n_guide)
        return recalls

    def look(self, n_rows: int, n: int) -> np.ndarray:
        """[n] float32: the largest attention that any query head of a full-attention layer pays to a position in its
        last n_rows queries (or as many as are remembered); 0 for positions that are in no cell."""
        spec = self.model.spec
        weights = torch.zeros(n)
        with torch.inference_mode():
            for il in self._full:
                q, q_pos = self._caches[il].last_queries(n_rows)
                largest_attention(weights, self._caches[il], q, q_pos, attn_scale=spec.attn_scale,
                                  softcap=spec.attn_softcap, sinks=self.model.layers[il].sinks)  # fmt: skip
        found: np.ndarray = weights.numpy()
        return found

    def cut(self, position: int) -> None:
        """Forget every token at or after a position, which is that of the next token then.

        A cut before the last eviction needs an archive: the cells then hold all positions before the cut where the
        budget holds them, else what `restored` says. Raises ConfigError for a position that was not read, EvictionError
        without an archive.
        """
        if not 0 <= position <= self.n_tokens:
            raise ConfigError(f"position must be from 0 to {self.n_tokens}, the tokens read; got {position}")
        inside = position < self.pos_exact
        if inside and not self._archives:
            raise EvictionError(f"cells up to position {self.pos_exact} have been evicted: read the text again")
        with torch.inference_mode():
            if inside:
                self._askers.clear()
                for il in self._full:
                    self._restore_layer(il, position)
            self._drop(self.n_tokens - position)
        if inside:
            self.pos_exact = position if position > (self.budget or 0) else 0

    def _check_archive(self) -> None:
        """Refuse settings that go with no archive."""
        if self.budget is None:
            raise ConfigError("an archive keeps what is evicted, and this engine never evicts; give it a budget")
        if self.config.traits.votes or self.config.allocation != "uniform":
            raise ConfigError(
                "an archive needs allocation 'uniform' and a method whose queries do not vote; got allocation "
                f"'{self.config.allocation}' and method '{self.config.method}'"
            )
        self._settings.check(self.budget, self._window)

    def _need_archive(self) -> None:
        if not self._archives:
            raise ConfigError("a recall needs an archive; make the engine with archive=True")

    def _check_guide(self, n_guide: int) -> None:
        most = max(0, min(self.n_tokens - 1, self._n_tail))
        if not 0 <= n_guide <= most:
            raise ConfigError(f"n_guide must be from 0 to {most}, the tokens since the last eviction; got {n_guide}")

    def _drop(self, n: int) -> None:
        """Forget the last n tokens."""
        self.n_tokens -= n
        if n:
            for cache in self._caches:
                cache.truncate(self.n_tokens)
            for archive in self._archives.values():
                archive.truncate(self.n_tokens)

    def _make_room(self, n: int, recall: bool) -> None:
        if self.capacity is None:
            return
        if recall and n > (most := self.capacity - (self.budget or 0)):
            raise EvictionError(f"a chunk of {n} tokens is larger than the reserve of {most}; read smaller chunks")
        if n <= self._free:
            return
        if recall:
            self._drop_tail()
        elif self.budget is not None:
            self.evict()
        if n > self._free:
            raise EvictionError(f"{n} tokens do not fit {self._free} free cells; decode smaller chunks")

    def _drop_tail(self) -> None:
        """An eviction while reading with recall: the first cells stay, up to the budget, and nothing is scored."""
        if self._n_tail <= self._settled:
            return
        assert self.budget is not None
        self._archive_tail(0)
        for il in self._full:
            cache = self._caches[il]
            cache.keep([torch.arange(self.budget)] * len(cache.pos))
        self.n_evictions += 1
        self.pos_exact = self.n_tokens

    def _archive_tail(self, n_guide: int) -> None:
        """Archive what the tail holds of the text and the archive does not."""
        for il, archive in self._archives.items():
            cache = self._caches[il]
            end = cache.cells - n_guide
            rows = slice(end - (self.n_tokens - n_guide - archive.n_rows), end)
            archive.append(cache.k[:, rows], cache.v[:, rows])

    def _recall_layer(self, il: int, q: torch.Tensor, q_pos: torch.Tensor, n_own: int) -> None:
        """Let queries q [heads, n, d] at the positions q_pos [n] choose the layer's cells; the last n_own stay."""
        pos = self._choose(il, q, q_pos, n_own)
        self._caches[il].swap(pos, *self._archives[il].rows(pos), n_own)
        self._askers[il] = self.pos_exact, q[:, -1]

    def _choose(self, il: int, q: torch.Tensor, q_pos: torch.Tensor, n_own: int) -> torch.Tensor:
        """[kv_heads, n] archived positions, ascending; another way to recall puts its own in this place."""
        spec, cache = self.model.spec, self._caches[il]
        assert self.budget is not None
        return recall_score(
            q, q_pos, self._archives[il].k, cache.k[:, cache.cells - n_own :], settings=self._settings,
            budget=self.budget, window=self._window, attn_scale=spec.attn_scale, softcap=spec.attn_softcap,
            sinks=self.model.layers[il].sinks,
        )[1]  # fmt: skip

    def _asks_anew(self, il: int, q: torch.Tensor, below: float) -> bool:
        """Whether a layer recalls for the queries q [heads, n, d]."""
        pos_exact, before = self._askers.get(il, (0, q[:, -1]))
        return below == 0 or pos_exact != self.pos_exact or likeness(q[:, -1], before) < float(np.float32(below))

    def _restore_layer(self, il: int, position: int) -> None:
        """The cells of a layer after a cut before the last eviction; all their rows come from the archive."""
        assert self.budget is not None
        pos = torch.tensor([
            restored(self.kept(il, head).tolist(), position, self.budget, self._window, self._settings.sinks)
            for head in range(self.model.spec.n_head_kv[il])
        ], dtype=torch.int64)  # fmt: skip
        self._caches[il].swap(pos, *self._archives[il].rows(pos), 0)

    @property
    def _n_tail(self) -> int:
        """Tokens since the last eviction."""
        return self.n_tokens - self.pos_exact

    @property
    def _settled(self) -> int:
        """Tokens of the tail that no eviction touches: those with which a new text fills the budget."""
        return self.shares.first if self.shares is not None and self.pos_exact == 0 else 0

    @property
    def _free(self) -> int:
        """Cells free until the next eviction; with a capacity only."""
        reserve = (self.capacity or 0) - (self.budget or 0)
        return reserve - self._n_tail + self._settled

    def _evict_layer(self, il: int, n_guide: int) -> None:
        spec, layer, cache = self.model.spec, self.model.layers[il], self._caches[il]
        assert self.budget is not None and self.shares is not None
        cache.keep(survivors(
            cache, self.config, budget=self.budget, own=self.shares.layers[self._full.index(il)],
            rows=self.shares.rows, n_guide=n_guide, layer=il,
            place=Place(self._full.index(il), len(self._full), self._cursor), wo=layer.wo.weight,
            attn_scale=spec.attn_scale, softcap=spec.attn_softcap, sinks=layer.sinks,
        ))  # fmt: skip
