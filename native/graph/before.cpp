// ReST-KV with one distance per query and cell (metric "before"): sum_i e_i a_ij / (1 - a_ij) || R (v_j - o_i) ||, for
// queries i and past cells j. Values are projected once, and the difference is taken behind R.

#include "graph/build.h"

#include <algorithm>

// a [n_cols, n, g, T]: attention of the rows from .. Adds to sums: scores of a panel of past cells [n_panel, 1, g, T].
void restkv_graph_builder::before(ggml_tensor * a, uint32_t from, std::vector<ggml_tensor *> & sums) {
    constexpr size_t F = sizeof(float);
    const uint32_t   N = cells.n_cells, L = cells.n_past, d = layer.d_v, n = (uint32_t) a->ne[1];
    const auto       flat = [&](ggml_tensor * t) { return ggml_reshape_3d(ctx, t, t->ne[0], n * g, T); };
    const auto       rows = [&](ggml_tensor * t) { return ggml_reshape_4d(ctx, t, t->ne[0], n, g, T); };

    // Of each query the cell that takes most of the attention, apart: it is scored on the host.
    ggml_tensor * w =
        N == a->ne[0] ? a : ggml_cont(ctx, ggml_view_4d(ctx, a, N, n, g, T, a->nb[1], a->nb[2], a->nb[3], 0));
    ggml_tensor * is_top = dominant(w);
    ggml_tensor * top    = ggml_mul(ctx, w, is_top);
    ggml_tensor * others = ggml_sub(ctx, w, top);
    ggml_tensor * total  = ggml_sum_rows(ctx, others);  // [1, n, g, T]
    ggml_tensor * rest   = total;                       // of a sink, too
    if (layer.sinks) {
        rest =
            ggml_add(ctx, total, ggml_cont(ctx, ggml_view_4d(ctx, a, 1, n, g, T, a->nb[1], a->nb[2], a->nb[3], N * F)));
    }
    ggml_tensor * cell = ggml_sum_rows(ctx, ggml_mul(ctx, is_top, ggml_arange(ctx, 0.0f, (float) N, 1.0f)));

    // o_i of all visible cells
    ggml_tensor * part = others;
    if (!graph.exact) {
        total = ggml_scale_bias(ctx, total, 1.0f, LEAST);
        part  = ggml_div(ctx, others, total);
    }
    ggml_tensor * u    = weighted_values(flat(part), N);  // [d, n g, T]
    u                  = rows(u);
    u                  = graph.exact ? u : ggml_mul(ctx, u, total);
    ggml_tensor * v    = rows(weighted_values(flat(top), N));
    ggml_tensor * o    = ggml_add(ctx, u, v);
    const factor  R    = factors();
    ggml_tensor * y    = R.coarse ? product(R, factor_of(o, GGML_TYPE_F32)) : o;  // [d, n, g, T]
    ggml_tensor * norm = ggml_clamp(ctx, ggml_sqrt(ctx, ggml_sum_rows(ctx, ggml_sqr(ctx, y))), 1e-30f, 3e38f);

    store(u, at.values + (size_t) from * d, (size_t) cells.n_rows * d);
    store(v, at.values + (size_t) (layer.n_head * cells.n_rows + from) * d, (size_t) cells.n_rows * d);
    ggml_tensor * facts = ggml_concat(ctx, cell, ggml_sum_rows(ctx, top), 0);
    facts               = ggml_concat(ctx, facts, ggml_concat(ctx, rest, norm, 0), 0);
    store(facts, at.tops + (size_t) from * RESTKV_GRAPH_TOP, (size_t) cells.n_rows * RESTKV_GRAPH_TOP);

    ggml_tensor * odds = ggml_div(ctx, others, ggml_scale_bias(ctx, others, -1.0f, 1.0f));
    odds               = ggml_mul(ctx, odds, ggml_view_2d(ctx, graph.weights, 1, n, F, from * F));
    odds               = graph.params.use_norm ? ggml_div(ctx, odds, norm) : odds;

    const uint32_t step = restkv_graph_panel(graph.most.tile_floats, (size_t) d * g * T, L);
    for (uint32_t j = 0, p = 0; j < L; j += step, ++p) {
        const uint32_t m = std::min(step, L - j);
        ggml_tensor *  x = ggml_reshape_4d(ctx, rows_of(layer.v, d, j, m), d, m, 1, T);
        x                = g > 1 ? ggml_repeat_4d(ctx, x, d, m, g, T) : x;
        x                = R.coarse ? product(R, factor_of(x, GGML_TYPE_F32)) : x;
        for (uint32_t i = 0; i < n; ++i) {
            ggml_tensor * z = ggml_view_4d(ctx, y, d, 1, g, T, y->nb[1], y->nb[2], y->nb[3], i * y->nb[1]);
            z               = ggml_sqrt(ctx, ggml_sum_rows(ctx, ggml_sqr(ctx, ggml_sub(ctx, x, z))));  // [1, m, g, T]
            ggml_tensor * e = ggml_view_4d(ctx, odds, m, 1, g, T, odds->nb[1], odds->nb[2], odds->nb[3],
                                           i * odds->nb[1] + j * odds->nb[0]);
            z               = ggml_mul(ctx, ggml_reshape_4d(ctx, z, m, 1, g, T), e);
            if (p < sums.size()) {
                sums[p] = ggml_add(ctx, sums[p], z);
            } else {
                sums.push_back(z);
            }
            ggml_build_forward_expand(gf, sums[p]);
        }
    }
}
