// Lengths of rows, and how keys lie to their mean: of the methods that look at keys, and of an indicator that looks at
// values.

#include "graph/build.h"
#include "methods/methods.h"

#include <algorithm>

// t [.., 1, T] to its place among the layer's results, `stride` floats from KV head to KV head.
void restkv_graph_builder::give_kv(ggml_tensor * t, size_t at, size_t stride) {
    constexpr size_t F    = sizeof(float);
    const size_t     head = stride * F;
    ggml_tensor *    to   = ggml_view_2d(ctx, buffers.results, t->ne[0], T, head, at * F + head * tile.head);
    ggml_build_forward_expand(gf, ggml_cpy(ctx, ggml_reshape_2d(ctx, t, t->ne[0], T), to));
}

// Squared, of the past cells.
void restkv_graph_builder::lengths(ggml_tensor * cache, uint32_t d) {
    const uint32_t L    = cells.n_past;
    const uint32_t step = restkv_graph_panel(graph.most.tile_floats, (size_t) d * T, L);
    for (uint32_t j = 0; j < L; j += step) {
        const uint32_t n = std::min(step, L - j);
        ggml_tensor *  x = ggml_sum_rows(ctx, ggml_sqr(ctx, rows_of(cache, d, j, n)));  // [1, n, T]
        give_kv(ggml_reshape_3d(ctx, x, n, 1, T), at.lengths + j, L);
    }
}

// The mean of the unit keys of the text, without a guide behind the window; and each past key's product with it.
void restkv_graph_builder::angles() {
    constexpr float LENGTH2_MIN = (float) (RESTKV_KEY_LENGTH_MIN * RESTKV_KEY_LENGTH_MIN);

    const uint32_t d      = layer.d_k;
    const uint32_t n_text = std::min(cells.n_past + graph.params.window, cells.n_cells);
    const uint32_t step   = restkv_graph_panel(graph.most.tile_floats, (size_t) d * T, n_text);
    ggml_tensor *  sum    = nullptr;  // [d, 1, T]
    for (uint32_t j = 0; j < n_text; j += step) {
        const uint32_t n    = std::min(step, n_text - j);
        ggml_tensor *  x    = rows_of(layer.k, d, j, n);
        ggml_tensor *  size = ggml_sqrt(ctx, ggml_clamp(ctx, ggml_sum_rows(ctx, ggml_sqr(ctx, x)), LENGTH2_MIN, 3e38f));
        ggml_tensor *  unit = ggml_div(ctx, x, size);
        if (hidden) {
            ggml_tensor * held = ggml_exp(ctx, ggml_cont(ctx, hidden_cells(j, n)));  // 0 or 1
            unit               = ggml_mul(ctx, unit, ggml_reshape_3d(ctx, held, 1, n, T));
        }
        unit               = ggml_cont(ctx, ggml_transpose(ctx, unit));  // [n, d, T]
        ggml_tensor * part = ggml_reshape_3d(ctx, ggml_sum_rows(ctx, unit), d, 1, T);
        sum                = sum ? ggml_add(ctx, sum, part) : part;
        ggml_build_forward_expand(gf, sum);
    }
    ggml_tensor * mean = ggml_scale(ctx, sum, 1.0f / n_text);  // a sum may be beyond F16
    give_kv(mean, at.mean, d);
    const factor m = factor_of(mean, GGML_TYPE_F32);
    for (uint32_t j = 0; j < cells.n_past; j += step) {
        const uint32_t n = std::min(step, cells.n_past - j);
        ggml_tensor *  x = product(factor_of(rows_of(layer.k, d, j, n), layer.k->type), m);  // [n, 1, T]
        give_kv(x, at.dots + j, cells.n_past);
    }
}
