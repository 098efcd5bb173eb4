// restkv_score_on: host arrays scored by the graphs, on any device. For tests, and for a check of a user's device.

#include "score_api.h"

#include "graph.h"
#include "methods/methods.h"
#include "params.h"

#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

// A device with a copy of the arrays, laid out as in a cache.
namespace {

struct device_arrays {
    ggml_backend_ptr        backend;
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;
    restkv_graph_layer      layer;
};

// [n_a][n_b][bytes] -> [n_b][n_a][bytes], onto the device
void upload(ggml_tensor * to, const void * data, size_t n_a, size_t n_b, size_t bytes) {
    std::vector<uint8_t> turned(n_a * n_b * bytes);
    for (size_t i = 0; i < n_a; ++i) {
        for (size_t j = 0; j < n_b; ++j) {
            memcpy(turned.data() + (j * n_a + i) * bytes, (const uint8_t *) data + (i * n_b + j) * bytes, bytes);
        }
    }
    ggml_backend_tensor_set(to, turned.data(), 0, turned.size());
}

void put_on(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft, const restkv_score_args & a,
            device_arrays & to) {
    const ggml_type type = (ggml_type) a.type_kv;
    const uint32_t  d    = a.n_embd_head;
    to.backend.reset(ggml_backend_dev_init(device, nullptr));
    to.ctx.reset(ggml_init({ 4 * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
    to.layer.k    = ggml_new_tensor_2d(to.ctx.get(), type, (int64_t) a.n_head_kv * d, a.n_cells);
    to.layer.v    = ggml_new_tensor_2d(to.ctx.get(), type, (int64_t) a.n_head_kv * d, a.n_cells);
    to.layer.ring = ggml_new_tensor_2d(to.ctx.get(), GGML_TYPE_F32, (int64_t) a.n_head * d, a.params.window);
    to.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(to.ctx.get(), buft));
    if (!to.backend || !to.buffer) {
        throw std::runtime_error(std::string("not enough memory on ") + ggml_backend_dev_name(device) +
                                 " for these arrays");
    }
    upload(to.layer.k, a.k, a.n_head_kv, a.n_cells, ggml_row_size(type, d));
    upload(to.layer.v, a.v, a.n_head_kv, a.n_cells, ggml_row_size(type, d));
    upload(to.layer.ring, a.q, a.n_head, a.params.window, d * sizeof(float));
    to.layer.n_head    = a.n_head;
    to.layer.n_head_kv = a.n_head_kv;
    to.layer.d_k = to.layer.d_v = d;
    to.layer.kq_scale           = a.attn_scale != 0.0f ? a.attn_scale : 1.0f / std::sqrt((float) d);
}

}  // namespace

static restkv_status score_on(const restkv_score_args & a, ggml_backend_dev_t device, size_t tile_floats,
                              const restkv_score_out & out) {
    const restkv_params & p      = a.params;
    const uint32_t        group  = a.n_head / a.n_head_kv;
    const uint32_t        n_past = a.n_cells - p.window;
    const uint32_t        n_keep = p.budget - p.window;
    const size_t          dd     = (size_t) a.n_embd_head * a.n_embd_head;

    const ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(device);
    const std::vector<float>         wo   = restkv_score_factors(a);
    device_arrays                    arrays;
    put_on(device, buft, a, arrays);
    restkv_graph_layer & layer = arrays.layer;
    restkv_graph graph(device, buft, p, { a.n_cells, p.window, std::min(p.budget, a.n_cells), tile_floats }, { layer });
    if (!wo.empty()) {
        layer.wo = graph.keep_factors(wo.data(), a.n_embd_head, a.n_head);
    }
    const std::string missing = graph.missing(layer);
    if (!missing.empty()) {
        return restkv_fail(RESTKV_UNSUPPORTED,
                           std::string(ggml_backend_dev_name(device)) + " cannot run " + missing + " for an eviction");
    }
    graph.bind(arrays.backend.get());

    std::vector<int32_t> pos((size_t) a.n_head_kv * a.n_cells), slots(p.window), n_visible(p.window);
    std::vector<bool>    drifts;
    for (uint32_t hk = 0; hk < a.n_head_kv; ++hk) {
        int32_t * row = pos.data() + (size_t) hk * a.n_cells;
        std::iota(row, row + a.n_cells, 0);
        if (a.pos) {
            std::copy_n(a.pos + (size_t) hk * a.n_cells, a.n_cells, row);
        }
        drifts.push_back(restkv_score_drifts(a, row));
    }
    std::iota(slots.begin(), slots.end(), 0);
    std::iota(n_visible.begin(), n_visible.end(), (int32_t) n_past + 1);
    const std::vector<float> weights = restkv_row_weights(p, p.window);

    restkv_graph_cells cells;
    cells.n_cells   = a.n_cells;
    cells.n_past    = n_past;
    cells.row_slots = slots.data();
    cells.n_rows    = p.window;
    cells.weights   = restkv_graph_kind_of(p) == RESTKV_GRAPH_OUTPUT ? weights.data() : nullptr;
    cells.n_visible = n_visible.data();
    cells.pos       = pos.data();
    cells.drift_top = std::find(drifts.begin(), drifts.end(), true) != drifts.end() ? std::min(n_keep, n_past) : 0;
    restkv_graph_scores scores;
    graph.score(layer, cells, scores);

    restkv_scratch       scratch(a.n_cells, group, a.n_embd_head, a.n_embd_head, 1);
    std::vector<int32_t> selected(n_past);
    for (uint32_t hk = 0; hk < a.n_head_kv; ++hk) {
        for (uint32_t g = 0; g < group; ++g) {
            const uint32_t h = hk * group + g;
            restkv_graph_raw(scores, p, h, a.n_embd_head, wo.empty() ? nullptr : wo.data() + h * dd,
                             scratch.raw.data() + (size_t) g * scratch.n_pad);
            scratch.drift[g] = drifts[hk] ? restkv_graph_drift(scores, h) : 0.0;
        }
        restkv_view view;
        view.n_cells = a.n_cells;
        view.n_past  = n_past;
        view.pos     = pos.data() + (size_t) hk * a.n_cells;
        view.group   = group;
        restkv_choose(view, p, drifts[hk], n_keep, scratch);
        restkv_score_take(a, hk, scratch, selected, out);
    }
    return RESTKV_OK;
}

restkv_status restkv_score_on(const restkv_score_args * args, const char * device, uint64_t tile_floats,
                              restkv_score_out * out) {
    if (!args || !out || !device) {
        return restkv_fail(RESTKV_INVALID, "restkv_score_on: no arguments");
    }
    if (const restkv_status status = restkv_check_score(*args, *out)) {
        return status;
    }
    llama_backend_init();  // finds the devices
    const ggml_backend_dev_t dev = ggml_backend_dev_by_name(device);
    if (!dev) {
        return restkv_fail(RESTKV_INVALID, std::string("there is no device '") + device + "'");
    }
    const restkv_graph_kind kind = restkv_graph_kind_of(args->params);
    if (kind != RESTKV_GRAPH_ATTENTION && kind != RESTKV_GRAPH_OUTPUT) {
        return restkv_fail(RESTKV_UNSUPPORTED, std::string("method ") + args->params.method +
                                                   " with these settings is not scored by a graph");
    }
    if (args->n_rows > 0 && args->n_rows != args->params.window) {
        return restkv_fail(RESTKV_UNSUPPORTED, "restkv_score_on reads the queries of the window and no others");
    }
    try {
        return score_on(*args, dev, tile_floats, *out);
    } catch (const std::exception & e) {
        return restkv_fail(RESTKV_NO_MEMORY, e.what());
    }
}
