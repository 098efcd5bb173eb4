// Rows move as raw bytes, whatever the cache's type: each head's row is a row of words.

#include "graph.h"

#include <algorithm>

// The rows of every KV head, as words: [words, cells, n_head_kv]. The type says nothing about their content; words are
// only ever copied.
static ggml_tensor * as_words(ggml_context * ctx, ggml_tensor * cache, size_t row, uint32_t n_head_kv) {
    ggml_tensor * words = ggml_view_tensor(ctx, cache);
    words->type         = GGML_TYPE_F32;
    words->ne[0]        = (int64_t) (row / sizeof(float));
    words->ne[1]        = cache->ne[1];
    words->ne[2]        = n_head_kv;
    words->ne[3]        = 1;
    words->nb[0]        = sizeof(float);
    words->nb[1]        = cache->nb[1];
    words->nb[2]        = row;
    words->nb[3]        = cache->nb[1] * cache->ne[1];
    return words;
}

// A piece of cells at a time through work memory: a piece is read before it is written, and a kept cell never moves
// back past cells that are still to be read (kept[i] >= i, ascending).
ggml_cgraph * restkv_graph::build_moves(ggml_context * ctx, const restkv_graph_layer & layer, ggml_tensor * kept,
                                        uint32_t n_kept, uint32_t first) const {
    ggml_cgraph * gf = ggml_new_graph_custom(ctx, 4096, false);  // 4 nodes a piece
    for (const auto & [cache, d] : { std::pair(layer.k, layer.d_k), std::pair(layer.v, layer.d_v) }) {
        const size_t   row   = ggml_row_size(cache->type, d);
        ggml_tensor *  words = as_words(ctx, cache, row, layer.n_head_kv);
        const size_t   most  = this->most.tile_floats / (words->ne[0] * words->ne[2]);
        const uint32_t step  = (uint32_t) std::max<size_t>(std::clamp<size_t>(most, 1, n_kept), n_kept / 256 + 1);
        for (uint32_t i = first; i < n_kept; i += step) {
            const int64_t n    = std::min(step, n_kept - i);
            const size_t  size = sizeof(int32_t);
            ggml_tensor * from = ggml_view_2d(ctx, kept, n, layer.n_head_kv, n_kept * size, i * size);
            ggml_tensor * to =
                ggml_view_3d(ctx, words, words->ne[0], n, words->ne[2], words->nb[1], words->nb[2], i * words->nb[1]);
            ggml_build_forward_expand(gf, ggml_cpy(ctx, ggml_get_rows(ctx, words, from), to));
        }
    }
    return gf;
}
