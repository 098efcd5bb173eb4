#include "cache/view.h"

const float * restkv_read_queries(const restkv_layer & layer, uint32_t h, const restkv_host_rows & rows,
                                  const restkv_sequence::window & window, restkv_scratch & scratch) {
    const uint32_t group = layer.group();
    float *        q     = scratch.queries.data();
    for (uint32_t g = 0; g < group; ++g) {
        for (const int32_t slot : window.slots) {
            const float * row =
                rows.ring.data() + (size_t) slot * layer.n_head * layer.d_k + (size_t) (h * group + g) * layer.d_k;
            for (uint32_t x = 0; x < layer.d_k; ++x) {
                *q++ = row[x] * layer.kq_scale;
            }
        }
    }
    return scratch.queries.data();
}

restkv_view restkv_view_of(const restkv_core & core, uint32_t l, uint32_t h, const restkv_host_rows & rows,
                           const restkv_sequence::window & window, restkv_scratch & scratch) {
    const restkv_layer & layer = core.layers[l];
    const uint32_t       group = layer.group();
    const size_t         first = core.seq.tail_begin() - core.seq.held(l, h) - layer.first;  // row of its first cell

    restkv_view view;
    view.k        = rows.k + first * layer.k->nb[1] + ggml_row_size(layer.k->type, (int64_t) h * layer.d_k);
    view.v        = rows.v + first * layer.v->nb[1] + ggml_row_size(layer.v->type, (int64_t) h * layer.d_v);
    view.k_stride = layer.k->nb[1];
    view.v_stride = layer.v->nb[1];
    view.k_type   = layer.k->type;
    view.v_type   = layer.v->type;
    view.n_rows   = (uint32_t) window.pos.size();
    view.row_pos  = window.pos.data();
    view.group    = group;
    view.d_k      = layer.d_k;
    view.d_v      = layer.d_v;
    view.softcap  = layer.softcap;
    view.sinks    = rows.sinks.empty() ? nullptr : rows.sinks.data() + (size_t) h * group;
    view.layer    = layer.il;
    view.head_kv  = h;
    view.i_layer  = l;
    view.n_layers = (uint32_t) core.layers.size();
    view.cursor   = core.seq.cursor;
    view.wo       = layer.wo.empty() ? nullptr : layer.wo.data() + (size_t) h * group * layer.d_v * layer.d_v;
    view.sums     = rows.sums ? rows.sums + (size_t) h * core.params.capacity : nullptr;

    if (core.method.uses_queries) {
        view.q = restkv_read_queries(layer, h, rows, window, scratch);
    }
    return view;
}
