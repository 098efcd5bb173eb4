// Which layers of a cache run their stages as graphs, and one eviction of those.

#include "restkv-cache.h"

#include "evict.h"
#include "graph.h"
#include "methods/methods.h"
#include "parallel.h"
#include "trust.h"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <map>
#include <stdexcept>

// A backend whose work can be aborted by the caller of llama_decode must not be shared: a half-moved cache is lost.
static bool can_abort(ggml_backend_dev_t device) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
    return ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_abort_callback") != nullptr;
}

static void set_threads(ggml_backend_t backend, ggml_backend_dev_t device, uint32_t n_threads) {
    const auto set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads");
    if (set) {
        set(backend, (int) restkv_threads(n_threads, UINT32_MAX));
    }
}

restkv_graph_layer restkv_cache::graph_layer(const layer_state & layer) const {
    restkv_graph_layer g;
    g.k         = layer.k;
    g.v         = layer.v;
    g.ring      = layer.ring;
    g.wo        = layer.wo_device;
    g.n_head    = layer.n_head;
    g.n_head_kv = layer.n_head_kv;
    g.d_k       = layer.d_k;
    g.d_v       = layer.d_v;
    g.kq_scale  = layer.kq_scale;
    g.softcap   = kv.hparams.attn_soft_cap ? kv.hparams.f_attn_logit_softcapping : 0.0f;
    return g;
}

void restkv_cache::init_graphs() {
    // the layers that should run as graphs, by where they live
    std::map<ggml_backend_buffer_type_t, std::vector<uint32_t>> wanted;
    for (uint32_t l = 0; l < layers.size(); ++l) {
        layer_state &               layer  = layers[l];
        const ggml_backend_buffer_t buffer = restkv_buffer_of(layer.k);
        const bool                  host   = ggml_backend_buffer_is_host(buffer);
        layer.stages = host && params.stages != RESTKV_STAGES_HOST ? RESTKV_STAGES_FUSED : RESTKV_STAGES_HOST;
        if (params.stages == RESTKV_STAGES_GRAPH || (params.stages == RESTKV_STAGES_AUTO && !host)) {
            wanted[ggml_backend_buffer_get_type(buffer)].push_back(l);
        }
    }
    for (const auto & [buft, members] : wanted) {
        try {
            const std::string reason = init_graph(buft, members);
            graph_reason             = graph_reason.empty() ? reason : graph_reason;
        } catch (const std::runtime_error & e) {
            graph_reason = graph_reason.empty() ? e.what() : graph_reason;
        }
    }
}

// Returns why some of the layers will not run as graphs, or "".
std::string restkv_cache::init_graph(ggml_backend_buffer_type_t buft, const std::vector<uint32_t> & members) {
    if (is_shared()) {
        return "budgets that are shared out over layers or heads have no graph";
    }
    if (restkv_graph_kind_of(params) == RESTKV_GRAPH_NONE) {
        return std::string("method ") + params.method + " with these settings has no graph";
    }
    const ggml_backend_dev_t device = ggml_backend_buft_is_host(buft) ?
                                          ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) :
                                          ggml_backend_buft_get_device(buft);
    if (!device || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_META) {
        return std::string(ggml_backend_buft_name(buft)) + " is spread over several devices";
    }
    const std::string distrust = restkv_distrusted(ggml_backend_dev_name(device));
    if (!distrust.empty()) {
        return distrust;
    }
    std::vector<restkv_graph_layer> shapes;
    for (const uint32_t l : members) {
        shapes.push_back(graph_layer(layers[l]));
    }
    restkv_graph::sizes most = { kv.get_size(), params.window, params.budget, 0 };
    if (!method->uses_queries) {
        most.n_rows = 1;  // no window of queries: only rows move
    }
    auto graph = std::make_unique<restkv_graph>(device, buft, params, most, shapes);

    std::string reason;
    uint32_t    n = 0;
    for (const uint32_t l : members) {
        layer_state & layer = layers[l];
        if (!layer.wo.empty()) {
            layer.wo_device = graph->keep_factors(layer.wo.data(), layer.d_v, layer.n_head);
        }
        const restkv_graph_layer shape  = graph_layer(layer);
        const std::string        lacked = graph->missing(shape);
        if (!lacked.empty()) {
            reason = std::string(ggml_backend_dev_name(device)) + " cannot run " + lacked + " for an eviction";
            continue;
        }
        graph->reserve(shape);
        n++;
    }
    if (n == 0) {
        for (const uint32_t l : members) {
            layers[l].wo_device = nullptr;
        }
        return reason;
    }
    if (can_abort(device)) {
        graph_backends.emplace_back(ggml_backend_dev_init(device, nullptr));
        if (!graph_backends.back()) {
            throw std::runtime_error(std::string(ggml_backend_dev_name(device)) + " has no room for another backend");
        }
        set_threads(graph_backends.back().get(), device, params.n_threads);
        graph->bind(graph_backends.back().get());
    }
    for (const uint32_t l : members) {
        if (reason.empty() || graph->missing(graph_layer(layers[l])).empty()) {
            layers[l].stages = RESTKV_STAGES_GRAPH;
            layers[l].graph  = graph.get();
        }
    }
    graphs.push_back(std::move(graph));
    return reason;
}

void restkv_cache::bind_graphs(llama_context * lctx) {
    for (const auto & graph : graphs) {
        if (graph->bound()) {
            continue;
        }
        ggml_backend_sched_t sched = lctx->get_sched();
        for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
            ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
            if (ggml_backend_get_device(backend) == graph->device) {
                graph->bind(backend);
            }
        }
        if (!graph->bound()) {
            throw std::runtime_error(std::string(ggml_backend_dev_name(graph->device)) +
                                     " is not a backend of this context");
        }
    }
}

std::string restkv_cache::graph_devices() const {
    std::string names;
    for (const auto & graph : graphs) {
        const char * name = ggml_backend_dev_name(graph->device);
        names += (names.empty() ? "" : ",") + std::string(name);
    }
    return names;
}

size_t restkv_cache::graph_bytes() const {
    size_t n = 0;
    for (const auto & graph : graphs) {
        n += graph->bytes();
    }
    return n;
}

// Positions of all cells of a layer: [n_head_kv][n_cells].
std::vector<int32_t> restkv_cache::positions(const layer_state & layer, const evict_plan & plan) const {
    std::vector<int32_t> pos;
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        const auto from = layer.table.begin() + (size_t) h * layer.budget;
        pos.insert(pos.end(), from, from + held(layer, h));
        pos.insert(pos.end(), plan.tail_pos.begin(), plan.tail_pos.end());
    }
    return pos;
}

void restkv_cache::evict_as_graph(const layer_state & layer, const evict_plan & plan, const float * sinks,
                                  std::vector<restkv_scratch> & scratch, layer_kept & out, restkv_graph_scores & scores,
                                  restkv_event & event) const {
    const uint32_t             N      = plan.n_end;  // every head has as many: budgets are not shared out here
    const uint32_t             n_past = N - plan.n_guide - layer.n_window;
    const uint32_t             group  = layer.n_head / layer.n_head_kv;
    const uint32_t             n_kept = layer.budget;
    const uint32_t             n_keep = n_kept - layer.n_window;
    const restkv_graph_kind    kind   = restkv_graph_kind_of(params);
    const std::vector<int32_t> pos    = positions(layer, plan);

    std::vector<uint8_t> drifts(layer.n_head_kv);
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        drifts[h] = restkv_drifts(*method, params, plan, pos.data() + (size_t) h * N, N);
    }

    int64_t              t_start = ggml_time_us();
    std::vector<int32_t> n_visible;
    std::vector<float>   weights;
    if (kind == RESTKV_GRAPH_OUTPUT) {
        weights = restkv_row_weights(params, (uint32_t) plan.row_pos.size());
    }
    if (kind != RESTKV_GRAPH_MOVES) {
        restkv_graph_layer shape = graph_layer(layer);
        shape.sinks              = sinks;
        // cells of the window hold the same positions in every head, and older cells are seen by every row
        for (const int32_t row : plan.row_pos) {
            n_visible.push_back((int32_t) (std::upper_bound(pos.begin(), pos.begin() + N, row) - pos.begin()));
        }
        restkv_graph_cells cells;
        cells.n_cells   = N;
        cells.n_past    = n_past;
        cells.row_slots = plan.row_slots.data();
        cells.n_rows    = (uint32_t) plan.row_pos.size();
        cells.weights   = kind == RESTKV_GRAPH_OUTPUT ? weights.data() : nullptr;
        cells.n_visible = n_visible.data();
        cells.pos       = pos.data();
        cells.drift_top = std::find(drifts.begin(), drifts.end(), 1) != drifts.end() ? n_keep : 0;
        layer.graph->score(shape, cells, scores);
    }
    event.us_attend += ggml_time_us() - t_start;

    std::vector<int32_t> kept((size_t) layer.n_head_kv * n_kept);
    const auto           choose = [&](uint32_t h, uint32_t thread) {
        restkv_scratch & s = scratch[thread];
        restkv_view      view;
        view.n_cells  = N;
        view.n_past   = n_past;
        view.pos      = pos.data() + (size_t) h * N;
        view.group    = group;
        view.layer    = layer.il;
        view.head_kv  = h;
        view.i_layer  = (uint32_t) (&layer - layers.data());
        view.n_layers = (uint32_t) layers.size();
        view.cursor   = cursor;
        if (kind == RESTKV_GRAPH_MOVES) {
            method->score(view, params, 0, s);
        }
        for (uint32_t g = 0; kind != RESTKV_GRAPH_MOVES && g < group; ++g) {
            const uint32_t head = h * group + g;
            const float *  wo   = layer.wo.empty() ? nullptr : layer.wo.data() + (size_t) head * layer.d_v * layer.d_v;
            restkv_graph_raw(scores, params, head, layer.d_v, wo, s.raw.data() + (size_t) g * s.n_pad);
            s.drift[g] = drifts[h] ? restkv_graph_drift(scores, head) : 0.0;
        }
        restkv_choose(view, params, drifts[h], n_keep, s);
        int32_t * own = kept.data() + (size_t) h * n_kept;
        std::copy_n(s.kept.begin(), n_keep, own);
        for (uint32_t i = 0; i < layer.n_window; ++i) {
            own[n_keep + i] = (int32_t) (n_past + i);
        }
        for (uint32_t i = 0; i < n_kept; ++i) {
            out.table[(size_t) h * n_kept + i] = view.pos[own[i]];
        }
        out.held[h] = n_kept;
    };
    restkv_parallel(layer.n_head_kv, std::min((uint32_t) scratch.size(), layer.n_head_kv), choose);

    t_start = ggml_time_us();
    layer.graph->move(graph_layer(layer), kept.data(), n_kept);
    event.us_compact += ggml_time_us() - t_start;
}
