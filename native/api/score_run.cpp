#include "api/score_run.h"

#include "api/status.h"
#include "methods/methods.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

std::string restkv_lacks(const char * device, const std::string & what) {
    return std::string(device) + " cannot run " + what + " for an eviction";
}

restkv_device_rows::restkv_device_rows(ggml_backend_dev_t device, ggml_type type, uint32_t n_head, uint32_t n_head_kv,
                                       uint32_t d, uint32_t n_cells, uint32_t rows_ring) :
    device(device),
    buft(ggml_backend_dev_buffer_type(device)),
    backend(ggml_backend_dev_init(device, nullptr)),
    ctx(ggml_init({ 4 * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true })) {
    layer.k = ggml_new_tensor_2d(ctx.get(), type, (int64_t) n_head_kv * d, n_cells);
    layer.v = ggml_new_tensor_2d(ctx.get(), type, (int64_t) n_head_kv * d, n_cells);
    if (rows_ring > 0) {
        layer.ring = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, (int64_t) n_head * d, rows_ring);
    }
    buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft));
    if (!backend || !buffer) {
        throw restkv_error(RESTKV_NO_MEMORY,
                           std::string("not enough memory on ") + ggml_backend_dev_name(device) + " for these arrays");
    }
    layer.n_head    = n_head;
    layer.n_head_kv = n_head_kv;
    layer.d_k = layer.d_v = d;
}

// [n_a][n_b][bytes] -> [n_b][n_a][bytes], onto the device
static void upload(ggml_tensor * to, const void * data, size_t n_a, size_t n_b, size_t bytes) {
    std::vector<uint8_t> turned(n_a * n_b * bytes);
    for (size_t i = 0; i < n_a; ++i) {
        for (size_t j = 0; j < n_b; ++j) {
            memcpy(turned.data() + (j * n_a + i) * bytes, (const uint8_t *) data + (i * n_b + j) * bytes, bytes);
        }
    }
    ggml_backend_tensor_set(to, turned.data(), 0, turned.size());
}

restkv_score_run::restkv_score_run(const restkv_score_args & args, ggml_backend_dev_t device, size_t tile_floats) :
    rows(device, (ggml_type) args.type_kv, args.n_head, args.n_head_kv, args.n_embd_head, args.n_cells,
         args.params.window),
    args(args),
    n_past(args.n_cells - args.params.window),
    n_keep(std::min(args.params.budget - args.params.window, args.n_cells - args.params.window)),
    wo(restkv_score_factors(args)),
    pos((size_t) args.n_head_kv * args.n_cells),
    slots(args.params.window),
    n_visible(args.params.window),
    selected(n_past),
    weights(restkv_graph_weights(args.params, args.params.window)),
    scratch(args.n_cells, args.n_head / args.n_head_kv, args.n_embd_head, args.n_embd_head, 1) {
    const restkv_params & p     = args.params;
    const uint32_t        d     = args.n_embd_head;
    restkv_graph_layer &  layer = rows.layer;

    layer.kq_scale = args.attn_scale != 0.0f ? args.attn_scale : 1.0f / std::sqrt((float) d);
    layer.softcap  = args.softcap;
    layer.sinks    = args.sinks;

    const restkv_graph::sizes most = { args.n_cells, p.window, std::min(p.budget, args.n_cells), tile_floats };
    graph = std::make_unique<restkv_graph>(device, rows.buft, p, most, std::vector<restkv_graph_layer>{ layer });
    if (!wo.empty()) {
        layer.wo = graph->keep_factors(wo.data(), d, args.n_head);
    }
    lacks = graph->missing(layer);
    graph->bind(rows.backend.get());

    upload(layer.k, args.k, args.n_head_kv, args.n_cells, ggml_row_size(layer.k->type, d));
    upload(layer.v, args.v, args.n_head_kv, args.n_cells, ggml_row_size(layer.v->type, d));
    upload(layer.ring, args.q, args.n_head, p.window, d * sizeof(float));

    for (uint32_t hk = 0; hk < args.n_head_kv; ++hk) {
        int32_t * row = pos.data() + (size_t) hk * args.n_cells;
        std::iota(row, row + args.n_cells, 0);
        if (args.pos) {
            std::copy_n(args.pos + (size_t) hk * args.n_cells, args.n_cells, row);
        }
        drifts.push_back(restkv_score_drifts(args, row));
    }
    std::iota(slots.begin(), slots.end(), 0);
    std::iota(n_visible.begin(), n_visible.end(), (int32_t) n_past + 1);

    cells.n_cells   = args.n_cells;
    cells.n_past    = n_past;
    cells.row_slots = slots.data();
    cells.n_rows    = p.window;
    cells.weights   = weights.empty() ? nullptr : weights.data();
    cells.n_visible = n_visible.data();
    cells.pos       = pos.data();
    cells.drift_top = std::find(drifts.begin(), drifts.end(), true) != drifts.end() ? n_keep : 0;
}

void restkv_score_run::attend() {
    scores = graph->score(rows.layer, cells);
}

void restkv_score_run::choose(const restkv_score_out & out) {
    const uint32_t d     = args.n_embd_head;
    const uint32_t group = args.n_head / args.n_head_kv;
    for (uint32_t hk = 0; hk < args.n_head_kv; ++hk) {
        for (uint32_t g = 0; g < group; ++g) {
            const uint32_t h = hk * group + g;
            restkv_graph_raw(scores, args.params, rows.layer, h, wo.empty() ? nullptr : wo.data() + (size_t) h * d * d,
                             0, scratch.raw.data() + (size_t) g * scratch.n_pad);
            scratch.drift[g] = drifts[hk] ? restkv_graph_drift(scores, h, cells.drift_top) : 0.0;
        }
        restkv_view view;
        view.n_cells = args.n_cells;
        view.n_past  = n_past;
        view.pos     = pos.data() + (size_t) hk * args.n_cells;
        view.group   = group;
        restkv_choose(view, args.params, drifts[hk], args.params.budget - args.params.window, scratch);
        restkv_score_take(args, hk, scratch, selected, out);
    }
}

void restkv_score_run::move(const int32_t * indices) {
    const uint32_t       n_kept = n_keep + args.params.window;
    std::vector<int32_t> kept((size_t) args.n_head_kv * n_kept);
    for (uint32_t hk = 0; hk < args.n_head_kv; ++hk) {
        int32_t * row = kept.data() + (size_t) hk * n_kept;
        std::copy_n(indices + (size_t) hk * n_keep, n_keep, row);
        std::iota(row + n_keep, row + n_kept, (int32_t) n_past);
    }
    graph->move(rows.layer, kept.data(), n_kept);
    graph->wait();
}
