// The graphs of a recall. Shapes are ggml's, fastest axis first: positions or d, queries of a group's heads (R), KV heads
// of the tile (T).

#include "graph/product.h"
#include "graph/recall.h"

static constexpr size_t F = sizeof(float);

// What a query does not see lies so far below what it sees that its weight is 0.
static constexpr float HIDDEN = 1e30f;

ggml_context_ptr restkv_recall_graph::new_context() const {
    return ggml_context_ptr(ggml_init({ n_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false),
                                        nullptr, /*no_alloc =*/true }));
}

// The logits of a panel, at their place among those of its heads. keys: F32 [d, n, T], or of the archive's type.
ggml_cgraph * restkv_recall_graph::build_panel(ggml_context * ctx, const shape & s, const panel & p,
                                               ggml_tensor * stage) const {
    const restkv_graph_layer & layer = s.layer;
    const int64_t              d = layer.d_k, R = s.rows(), T = p.n_heads;

    ggml_tensor * keys = nullptr;
    if (p.own) {
        keys = restkv_rows_of(ctx, layer.k, layer.d_k, layer.n_head_kv, p.head, p.n_heads, s.own_first + p.from, p.n);
    } else {
        const size_t head = ggml_row_size(type, d);
        keys              = ggml_view_3d(ctx, stage, d, p.n, T, head, head * p.n, 0);
        keys              = type == GGML_TYPE_F32 ? keys : ggml_cast(ctx, keys, GGML_TYPE_F32);
    }
    ggml_tensor * q = ggml_view_3d(ctx, queries, d, R, T, d * F, d * R * F, p.head * R * d * F);
    ggml_tensor * z = restkv_product(ctx, restkv_factor_of(ctx, keys, p.own ? layer.k->type : type, exact),
                                     restkv_factor_of(ctx, q, GGML_TYPE_F32, exact));  // [n, R, T]
    if (layer.softcap > 0.0f) {
        z = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, z, 1.0f / layer.softcap)), layer.softcap);
    }
    const size_t column = p.own ? s.n + p.from : p.from;  // of position `column`
    if (s.masked) {
        ggml_tensor * own  = ggml_view_3d(ctx, pos, 1, R, T, F, R * F, p.head * R * F);
        ggml_tensor * here = ggml_arange(ctx, (float) column, (float) (column + p.n), 1.0f);
        ggml_tensor * past = ggml_sub(ctx, ggml_repeat_4d(ctx, own, p.n, R, T, 1), here);
        z                  = ggml_add(ctx, z, ggml_clamp(ctx, ggml_scale(ctx, past, HIDDEN), -HIDDEN, 0.0f));
    }
    const size_t  row = s.n_cols() * F;
    ggml_tensor * to  = ggml_view_3d(ctx, logits, p.n, R, T, row, row * R, column * F);
    ggml_cgraph * gf  = ggml_new_graph_custom(ctx, n_nodes, false);
    ggml_build_forward_expand(gf, ggml_cpy(ctx, z, to));
    return gf;
}

// The attention of these heads' queries, and of it the largest of each query head, summed over the group.
ggml_cgraph * restkv_recall_graph::build_scores(ggml_context * ctx, const shape & s, uint32_t head,
                                                uint32_t n_heads) const {
    const int64_t g = s.group(), Q = s.n_query, T = n_heads, n_cols = (int64_t) s.n_cols();
    const size_t  row = n_cols * F;
    ggml_cgraph * gf  = ggml_new_graph_custom(ctx, n_nodes, false);
    if (s.sinks) {
        ggml_tensor * own = ggml_view_4d(ctx, sinks, 1, 1, g, T, F, F, g * F, head * g * F);
        ggml_tensor * to  = ggml_view_4d(ctx, logits, 1, Q, g, T, row, row * Q, row * Q * g, row - F);
        ggml_build_forward_expand(gf, ggml_cpy(ctx, ggml_repeat_4d(ctx, own, 1, Q, g, T), to));
    }
    ggml_tensor * z   = ggml_view_4d(ctx, logits, n_cols, Q, g, T, row, row * Q, row * Q * g, 0);
    ggml_tensor * a   = ggml_soft_max_inplace(ctx, z);
    ggml_tensor * top = ggml_pool_2d(ctx, a, GGML_OP_POOL_MAX, 1, (int) Q, 1, (int) Q, 0, 0);  // [n_cols, 1, g, T]
    ggml_tensor * sum = nullptr;
    for (int64_t i = 0; i < g; ++i) {
        ggml_tensor * x = ggml_view_4d(ctx, top, s.n, 1, 1, T, top->nb[1], top->nb[2], top->nb[3], i * top->nb[2]);
        sum             = sum ? ggml_add(ctx, sum, x) : x;
    }
    const size_t  own = s.n * F;
    ggml_tensor * to  = ggml_view_4d(ctx, scores, s.n, 1, 1, T, own, own, own, head * own);
    ggml_build_forward_expand(gf, ggml_cpy(ctx, sum, to));
    return gf;
}
