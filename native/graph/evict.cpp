// Which layers of a cache run their stages as graphs, and on which backend.

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
    g.hidden    = layer.mask;
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
    const restkv_graph::sizes most  = restkv_graph::sizes_of(params, kv.get_size(), n_row_max);
    auto                      graph = std::make_unique<restkv_graph>(device, buft, params, most, shapes);

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

void restkv_cache::bind_graphs(ggml_backend_sched_t sched) {
    for (const auto & graph : graphs) {
        if (graph->bound()) {
            continue;
        }
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
        n += graph->bytes() + graph->host_bytes();
    }
    return n;
}
