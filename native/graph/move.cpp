// Rows move as raw bytes, whatever the cache's type: each head's row is a row of words.

#include "graph/graph.h"

#include <algorithm>

ggml_tensor * restkv_graph_words(ggml_context * ctx, ggml_tensor * cache, uint32_t d, uint32_t n_head_kv) {
    const size_t  row   = ggml_row_size(cache->type, d);
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

// A piece of rows at a time through work memory: a piece is read before it is written. What goes down is taken from the
// smallest rows on, what goes up from the largest, so that no piece is overwritten before it is read.
ggml_cgraph * restkv_graph::build_moves(ggml_context * ctx, const restkv_graph_layer & layer, ggml_tensor * from,
                                        uint32_t n, uint32_t first, bool up) const {
    ggml_cgraph * gf = ggml_new_graph_custom(ctx, 4096, false);  // 4 nodes a piece
    for (const auto & [cache, d] : { std::pair(layer.k, layer.d_k), std::pair(layer.v, layer.d_v) }) {
        ggml_tensor *  words  = restkv_graph_words(ctx, cache, d, layer.n_head_kv);
        const size_t   most   = this->most.tile_floats / (words->ne[0] * words->ne[2]);
        const uint32_t step   = (uint32_t) std::max<size_t>(std::clamp<size_t>(most, 1, n), n / 256 + 1);
        const uint32_t pieces = (n + step - 1) / step;
        for (uint32_t p = 0; p < pieces; ++p) {
            const uint32_t i    = (up ? pieces - 1 - p : p) * step;
            const int64_t  size = std::min(step, n - i);
            ggml_tensor *  rows =
                ggml_view_2d(ctx, from, size, layer.n_head_kv, n * sizeof(int32_t), i * sizeof(int32_t));
            ggml_tensor * to = ggml_view_3d(ctx, words, words->ne[0], size, words->ne[2], words->nb[1], words->nb[2],
                                            (first + i) * words->nb[1]);
            ggml_build_forward_expand(gf, ggml_cpy(ctx, ggml_get_rows(ctx, words, rows), to));
        }
    }
    return gf;
}
