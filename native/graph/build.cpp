#include "graph/build.h"

#include <algorithm>
#include <cmath>

// Halvings of the interval of log weights in which the drift's threshold lies. Each reads and writes the whole attention
// of the window, so they are most of the traffic. With 18 (an interval of 3e-4) the drift of real rows (SmolLM2, 3,300
// cells) is off by 0.04 positions on average and 0.15 at most, and no kernel or shift changes at a scale of 2000 or 50;
// 22 give 0.01 and 0.1, 14 give 0.15 and 0.6. Aiming at the wanted count between the ends, in place of the middle, would
// save four more passes, for six more small operations in each.
static constexpr int ROUNDS = 18;

// Tensors that a rounding device adds to a product: two factors in two parts each, three products for one.
static constexpr size_t SPLIT = 14;

size_t restkv_graph_builder::nodes(const restkv_graph & graph, const restkv_graph_layer & layer,
                                   const restkv_graph_cells & cells, const restkv_graph::tile & tile) {
    const auto     passes = [](size_t n, size_t step) { return (n + step - 1) / step; };
    const size_t   floats = graph.most.tile_floats;
    const size_t   width  = (size_t) layer.d_v * (layer.n_head / layer.n_head_kv) * tile.n_heads;
    const uint32_t N      = cells.n_cells;
    const size_t   keys   = passes(N, restkv_graph_panel(floats, (size_t) layer.d_k * tile.n_heads, N)) + 2;
    const size_t   values = passes(N, restkv_graph_panel(floats, width, N));
    const size_t   blocks = passes(cells.n_rows, tile.n_rows);
    const size_t   drift  = cells.drift_top > 0 ? ROUNDS * 11 + 32 : 0;
    const size_t   split  = graph.exact ? 0 : SPLIT;
    if (graph.kind == RESTKV_GRAPH_BEFORE) {
        const size_t row = 10;  // of each query and panel
        return blocks *
                   ((15 + split) * keys + drift + 128 + values * (row * tile.n_rows + 2 * (13 + split) + 11 + split)) +
               64;
    }
    return blocks * ((15 + split) * keys + drift + (graph.takes_largest ? 128 : 64)) + (30 + 2 * split) * values +
           (35 + split) * keys + 64;
}

restkv_graph_builder::restkv_graph_builder(const restkv_graph & graph, ggml_context * ctx,
                                           const restkv_graph_layer & layer, const restkv_graph_cells & cells,
                                           const restkv_graph::buffer_set & buffers, const restkv_graph::tile & tile) :
    gf(ggml_new_graph_custom(ctx, NODES_MAX, false)),
    graph(graph),
    ctx(ctx),
    layer(layer),
    cells(cells),
    buffers(buffers),
    tile(tile),
    at(graph.layout_of(layer, cells)),
    g(layer.n_head / layer.n_head_kv),
    T(tile.n_heads) {
    if (layer.hidden && graph.kind != RESTKV_GRAPH_LENGTHS) {
        const size_t head = layer.hidden->nb[1];
        hidden            = ggml_cast(ctx,
                                      ggml_view_2d(ctx, layer.hidden, cells.n_cells, T, head,
                                                   cells.first * layer.hidden->nb[0] + tile.head * head),
                                      GGML_TYPE_F32);
    }
    if (restkv_graph_attends(graph.kind)) {
        attend();
    }
    if (graph.kind == RESTKV_GRAPH_ATTENTION_V) {
        lengths(layer.v, layer.d_v);
    } else if (graph.kind == RESTKV_GRAPH_LENGTHS || graph.kind == RESTKV_GRAPH_ANGLES) {
        lengths(layer.k, layer.d_k);
    }
    if (graph.kind == RESTKV_GRAPH_ANGLES) {
        angles();
    }
}

void restkv_graph_builder::attend() {
    ggml_tensor *              abar = nullptr;
    std::vector<ggml_tensor *> sums;  // of panels of past cells
    for (uint32_t from = 0; from < cells.n_rows; from += tile.n_rows) {
        const uint32_t n = std::min(tile.n_rows, cells.n_rows - from);
        ggml_tensor *  a = attention(from, n);
        if (cells.drift_top > 0) {
            store(drift(a), at.drift + (size_t) from * 4, (size_t) cells.n_rows * 4);
        }
        if (graph.kind == RESTKV_GRAPH_BEFORE) {
            before(a, from, sums);
            continue;
        }
        if (cells.weights) {
            ggml_tensor * e = ggml_view_2d(ctx, graph.weights, 1, n, sizeof(float), from * sizeof(float));
            a               = ggml_mul(ctx, a, e);
        }
        a    = join_rows_of_window(a);
        abar = abar ? join(abar, a) : a;
        ggml_build_forward_expand(gf, abar);
    }
    for (uint32_t p = 0, j = 0; p < sums.size(); j += sums[p++]->ne[0]) {
        store(sums[p], at.abar + j, cells.n_past);
    }
    if (!abar) {
        return;
    }
    store(abar, at.abar, abar->ne[0]);
    if (graph.kind == RESTKV_GRAPH_OUTPUT) {
        distances(ggml_reshape_3d(ctx, abar, abar->ne[0], g, T));
    }
}

// t [.., n, g, T] to its place among the layer's results: `at`, and `stride` floats from query head to query head. One
// read of the host then brings all tiles and pieces of a layer.
void restkv_graph_builder::store(ggml_tensor * t, size_t at, size_t stride) {
    constexpr size_t F    = sizeof(float);
    const size_t     head = stride * F;
    const size_t     from = at * F + head * tile.head * g;
    ggml_tensor * to = ggml_view_4d(ctx, buffers.results, t->ne[0], t->ne[1], g, T, t->ne[0] * F, head, g * head, from);
    ggml_build_forward_expand(gf, ggml_cpy(ctx, t, to));
}

restkv_graph_builder::factor restkv_graph_builder::factor_of(ggml_tensor * x, ggml_type from) const {
    return restkv_factor_of(ctx, x, from, graph.exact);
}

ggml_tensor * restkv_graph_builder::product(const factor & a, const factor & b) const {
    return restkv_product(ctx, a, b);
}

ggml_tensor * restkv_graph_builder::queries(uint32_t from, uint32_t n) const {
    const size_t  d     = layer.d_k * sizeof(float);
    ggml_tensor * slots = ggml_view_1d(ctx, graph.slots, n, from * sizeof(int32_t));
    ggml_tensor * rows  = ggml_get_rows(ctx, layer.ring, slots);  // [n_head d_k, n]
    ggml_tensor * q     = ggml_view_4d(ctx, rows, layer.d_k, n, g, T, layer.n_head * d, d, g * d, tile.head * g * d);
    q                   = ggml_scale(ctx, ggml_cont(ctx, q), layer.kq_scale);
    return ggml_reshape_3d(ctx, q, layer.d_k, n * g, T);
}

ggml_tensor * restkv_graph_builder::rows_of(ggml_tensor * cache, uint32_t d, uint32_t from, uint32_t n) const {
    return restkv_rows_of(ctx, cache, d, layer.n_head_kv, tile.head, T, cells.first + from, n);
}

// Of the tile's KV heads, cells from .. : -inf where a head holds nothing, else 0.
ggml_tensor * restkv_graph_builder::hidden_cells(uint32_t from, uint32_t n) const {
    const size_t head = hidden->nb[1];
    return ggml_view_4d(ctx, hidden, n, 1, 1, T, head, head, head, from * sizeof(float));
}

// The model's own attention, sinks as a last column. Only the newest cells can lie behind a row: they are masked apart.
ggml_tensor * restkv_graph_builder::attention(uint32_t from, uint32_t n) const {
    const uint32_t             n_open = (uint32_t) cells.n_visible[0];
    const uint32_t             n_tail = cells.n_cells - n_open;
    const factor               q      = factor_of(queries(from, n), GGML_TYPE_F32);
    std::vector<ggml_tensor *> parts;
    const auto                 add = [&](uint32_t j, uint32_t n_cells, bool masked) {
        ggml_tensor * z = product(factor_of(rows_of(layer.k, layer.d_k, j, n_cells), layer.k->type), q);
        z               = ggml_reshape_4d(ctx, z, n_cells, n, g, T);
        if (layer.softcap > 0.0f) {
            z = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, z, 1.0f / layer.softcap)), layer.softcap);
        }
        if (masked) {
            const size_t row = n_tail * sizeof(float);
            z                = ggml_add(ctx, z, ggml_view_2d(ctx, graph.mask, n_tail, n, row, from * row));
        }
        if (hidden) {
            z = ggml_add(ctx, z, hidden_cells(j, n_cells));
        }
        ggml_build_forward_expand(gf, z);
        parts.push_back(z);
    };
    const uint32_t step = restkv_graph_panel(graph.most.tile_floats, (size_t) layer.d_k * T, n_open);
    for (uint32_t j = 0; j < n_open; j += step) {
        add(j, std::min(step, n_open - j), false);
    }
    if (n_tail > 0) {
        add(n_open, n_tail, true);
    }
    if (layer.sinks) {
        const size_t  size = sizeof(float);
        ggml_tensor * s    = ggml_view_4d(ctx, buffers.sinks, 1, 1, g, T, size, size, g * size, tile.head * g * size);
        parts.push_back(ggml_repeat_4d(ctx, s, 1, n, g, T));
    }
    ggml_tensor * z = parts.back();
    for (size_t i = parts.size() - 1; i > 0; --i) {
        z = ggml_concat(ctx, parts[i - 1], z, 0);
    }
    return ggml_soft_max(ctx, z);
}

// ggml has no larger of two.
ggml_tensor * restkv_graph_builder::join(ggml_tensor * a, ggml_tensor * b) const {
    return ggml_add(ctx, a, graph.takes_largest ? ggml_relu(ctx, ggml_sub(ctx, b, a)) : b);
}

// By halves: a few operations, and the rounding of a sum does not pile up.
ggml_tensor * restkv_graph_builder::join_rows_of_window(ggml_tensor * a) const {
    const auto rows = [&](uint32_t from, uint32_t n) {
        return ggml_view_4d(ctx, a, a->ne[0], n, g, T, a->nb[1], a->nb[2], a->nb[3], from * a->nb[1]);
    };
    std::vector<ggml_tensor *> odd;
    for (uint32_t n = (uint32_t) a->ne[1]; n > 1; n /= 2) {
        if (n % 2) {
            odd.push_back(rows(n - 1, 1));
        }
        a = join(rows(0, n / 2), rows(n / 2, n / 2));
    }
    for (ggml_tensor * row : odd) {
        a = join(a, row);
    }
    return a->ne[1] == 1 && ggml_is_contiguous(a) ? a : ggml_cont(ctx, a);
}

// 1 where a weight is above DOMINANT, else 0.
ggml_tensor * restkv_graph_builder::dominant(ggml_tensor * w) const {
    constexpr float STEEP = 1e30f;
    return ggml_clamp(ctx, ggml_scale_bias(ctx, w, STEEP, -STEEP * RESTKV_GRAPH_DOMINANT), 0.0f, 1.0f);
}

// Upper factors of W_o [d, d, g, T], or null: identity.
restkv_graph_builder::factor restkv_graph_builder::factors() const {
    if (!layer.wo) {
        return {};
    }
    const size_t head = layer.wo->nb[2];
    return factor_of(
        ggml_view_4d(ctx, layer.wo, layer.d_v, layer.d_v, g, T, layer.wo->nb[1], head, g * head, tile.head * g * head),
        GGML_TYPE_F32);
}

// sum_j w_j v_j of the first n_cells cells, a panel of them at a time: w [n_cells, x, T] -> [d, x, T].
ggml_tensor * restkv_graph_builder::weighted_values(ggml_tensor * w, uint32_t n_cells) {
    const uint32_t d      = layer.d_v;
    const uint32_t step   = restkv_graph_panel(graph.most.tile_floats, (size_t) d * g * T, n_cells);
    ggml_tensor *  values = nullptr;
    for (uint32_t j = 0; j < n_cells; j += step) {
        const uint32_t n    = std::min(step, n_cells - j);
        ggml_tensor *  v    = ggml_cont(ctx, ggml_transpose(ctx, rows_of(layer.v, d, j, n)));  // [n, d, T]
        ggml_tensor *  part = w;
        if (n < n_cells) {
            part = ggml_cont(ctx, ggml_view_3d(ctx, w, n, w->ne[1], T, w->nb[1], w->nb[2], j * w->nb[0]));
        }
        ggml_tensor * sum = product(factor_of(v, layer.v->type), factor_of(part, GGML_TYPE_F32));
        values            = values ? ggml_add(ctx, values, sum) : sum;
        ggml_build_forward_expand(gf, values);
    }
    return values;
}

// obar[k] = sum_j abar_j v_j[k], the dominant cell apart; then || R (obar - v_j) ||^2, a panel of cells at a time. The
// square is never expanded, which would cancel.
void restkv_graph_builder::distances(ggml_tensor * abar) {
    const uint32_t L = cells.n_past, d = layer.d_v;
    ggml_tensor *  w = ggml_cont(ctx, ggml_view_3d(ctx, abar, L, g, T, abar->nb[1], abar->nb[2], 0));

    ggml_tensor * top    = ggml_mul(ctx, w, dominant(w));
    ggml_tensor * others = ggml_sub(ctx, w, top);
    ggml_tensor * total  = nullptr;  // [1, g, T] their sum: F16 ends at 6e-8, and all together may be below
    if (!graph.exact) {
        total  = ggml_scale_bias(ctx, ggml_sum_rows(ctx, others), 1.0f, LEAST);
        others = ggml_div(ctx, others, total);
    }
    w = ggml_concat(ctx, others, top, 1);  // [L, 2 g, T]

    ggml_tensor * values = weighted_values(w, L);
    const auto    half   = [&](uint32_t i) {
        ggml_tensor * x = ggml_view_3d(ctx, values, d, g, T, values->nb[1], values->nb[2], i * g * values->nb[1]);
        return ggml_reshape_4d(ctx, ggml_cont(ctx, x), d, 1, g, T);
    };
    ggml_tensor * rest     = total ? ggml_mul(ctx, half(0), ggml_reshape_4d(ctx, total, 1, 1, g, T)) : half(0);
    ggml_tensor * dominant = half(1);
    store(rest, at.values, d);
    store(dominant, at.values + (size_t) layer.n_head * d, d);

    ggml_tensor *  o    = ggml_add(ctx, rest, dominant);
    const factor   R    = factors();
    const uint32_t step = restkv_graph_panel(graph.most.tile_floats, (size_t) d * g * T, L);
    for (uint32_t j = 0; j < L; j += step) {
        const uint32_t n = std::min(step, L - j);
        ggml_tensor *  x = ggml_reshape_4d(ctx, rows_of(layer.v, d, j, n), d, n, 1, T);
        x                = ggml_sub(ctx, g > 1 ? ggml_repeat_4d(ctx, x, d, n, g, T) : x, o);
        x                = R.coarse ? product(R, factor_of(x, GGML_TYPE_F32)) : x;
        x                = ggml_sum_rows(ctx, ggml_sqr(ctx, x));  // [1, n, g, T]
        store(ggml_reshape_4d(ctx, x, n, 1, g, T), at.distances + j, L);
    }
}

// Where the drift_top largest weights of a row lie, without a sort: halve an interval of log weights until next to no
// cell is in it. Returns per row: cells above its upper end, the sum of their positions, and the same for its lower end.
ggml_tensor * restkv_graph_builder::drift(ggml_tensor * a) const {
    constexpr float LOWEST = -87.0f;  // log of the smallest normal float: smaller weights count as none
    uint32_t        least  = cells.drift_top;
    for (uint32_t h = 0; cells.drift_tops && h < layer.n_head_kv; ++h) {
        least = std::min(least, std::max(cells.drift_tops[h], 1u));
    }
    const float highest = -std::log((float) least);  // as a row's weights sum to at most 1

    const uint32_t n = (uint32_t) a->ne[1];
    ggml_tensor *  p = ggml_view_4d(ctx, a, cells.n_cells, n, g, T, a->nb[1], a->nb[2], a->nb[3], 0);  // no sinks

    const auto above = [&](ggml_tensor * log_weight) {
        return ggml_step(ctx, ggml_sub(ctx, p, ggml_exp(ctx, log_weight)));
    };
    constexpr size_t F = sizeof(float);
    ggml_tensor *    tops =
        cells.drift_tops ? ggml_view_4d(ctx, buffers.tops, 1, 1, 1, T, F, F, F, tile.head * F) : nullptr;
    ggml_tensor * one   = ggml_cont(ctx, ggml_view_4d(ctx, a, 1, n, g, T, a->nb[1], a->nb[2], a->nb[3], 0));
    ggml_tensor * lo    = ggml_scale_bias(ctx, one, 0.0f, LOWEST);
    float         width = highest - LOWEST;
    for (int i = 0; i < ROUNDS; ++i) {
        width /= 2.0f;
        ggml_tensor * mid   = ggml_scale_bias(ctx, lo, 1.0f, width);
        ggml_tensor * count = ggml_sum_rows(ctx, above(mid));
        // 1 when enough cells lie above the middle: the lower end rises to it
        ggml_tensor * more  = tops ? ggml_sub(ctx, count, tops) : count;
        ggml_tensor * up    = ggml_step(ctx, ggml_scale_bias(ctx, more, 1.0f, 0.5f - (tops ? 0.0f : cells.drift_top)));
        lo                  = ggml_add(ctx, lo, ggml_scale(ctx, up, width));
    }
    ggml_tensor * hi  = ggml_scale_bias(ctx, lo, 1.0f, width);
    const size_t  row = cells.n_cells * sizeof(float);
    ggml_tensor * pos = ggml_view_4d(ctx, buffers.pos, cells.n_cells, 1, 1, T, row, row, row, tile.head * row);
    ggml_tensor * out = nullptr;
    for (ggml_tensor * end : { hi, lo }) {
        ggml_tensor * is = above(end);
        for (ggml_tensor * x : { ggml_sum_rows(ctx, is), ggml_sum_rows(ctx, ggml_mul(ctx, is, pos)) }) {
            out = out ? ggml_concat(ctx, out, x, 0) : x;
        }
    }
    return out;
}
