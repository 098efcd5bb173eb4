#include "cache/devices.h"

#include "api/status.h"
#include "graph/trust.h"
#include "stages/parallel.h"

#include <map>
#include <stdexcept>

// A backend whose work can be aborted by the caller of llama_decode must not be shared: a half-moved cache is lost.
static bool can_abort(ggml_backend_dev_t device) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
    return ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_abort_callback") != nullptr;
}

ggml_backend_dev_t restkv_find_runner(ggml_backend_buffer_type_t buft, std::string & reason) {
    const ggml_backend_dev_t device = ggml_backend_buft_is_host(buft) ?
                                          ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) :
                                          ggml_backend_buft_get_device(buft);
    if (!device || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_META) {
        reason = std::string(ggml_backend_buft_name(buft)) + " is spread over several devices";
        return nullptr;
    }
    reason = restkv_distrusted(ggml_backend_dev_name(device));
    return reason.empty() ? device : nullptr;
}

void restkv_devices::init(std::vector<restkv_layer> & layers, const restkv_params & params, uint32_t n_cells,
                          uint32_t n_kept) {
    // the layers that should run as graphs, by where they live
    std::map<ggml_backend_buffer_type_t, std::vector<uint32_t>> wanted;
    for (uint32_t l = 0; l < layers.size(); ++l) {
        restkv_layer &              layer  = layers[l];
        const ggml_backend_buffer_t buffer = restkv_buffer_of(layer.k);
        const bool                  host   = ggml_backend_buffer_is_host(buffer);
        layer.stages = host && params.stages != RESTKV_STAGES_HOST ? RESTKV_STAGES_FUSED : RESTKV_STAGES_HOST;
        if (params.stages == RESTKV_STAGES_GRAPH || (params.stages == RESTKV_STAGES_AUTO && !host)) {
            wanted[ggml_backend_buffer_get_type(buffer)].push_back(l);
        }
    }
    for (const auto & [buft, members] : wanted) {
        std::string why;
        try {
            why = init_graph(layers, members, buft, params, n_cells, n_kept);
        } catch (const std::runtime_error & e) {
            why = e.what();
        }
        reason_ = reason_.empty() ? why : reason_;
    }
}

// Returns why some of the layers will not run as graphs, or "".
std::string restkv_devices::init_graph(std::vector<restkv_layer> & layers, const std::vector<uint32_t> & members,
                                       ggml_backend_buffer_type_t buft, const restkv_params & params, uint32_t n_cells,
                                       uint32_t n_kept) {
    if (restkv_graph_kind_of(params) == RESTKV_GRAPH_NONE) {
        return std::string("method ") + params.method + " with these settings has no graph";
    }
    std::string              reason;
    const ggml_backend_dev_t device = restkv_find_runner(buft, reason);
    if (!device) {
        return reason;
    }
    std::vector<restkv_graph_layer> shapes;
    for (const uint32_t l : members) {
        shapes.push_back(layers[l].graph_layer());
    }
    const restkv_graph::sizes most  = restkv_graph::sizes_of(params, n_cells, n_kept);
    auto                      graph = std::make_unique<restkv_graph>(device, buft, params, most, shapes);

    uint32_t n = 0;
    for (const uint32_t l : members) {
        restkv_layer & layer = layers[l];
        if (!layer.wo.empty()) {
            layer.wo_device = graph->keep_factors(layer.wo.data(), layer.d_v, layer.n_head);
        }
        const restkv_graph_layer shape  = layer.graph_layer();
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
        backends.emplace_back(ggml_backend_dev_init(device, nullptr));
        if (!backends.back()) {
            throw restkv_error(RESTKV_NO_MEMORY,
                               std::string(ggml_backend_dev_name(device)) + " has no room for another backend");
        }
        restkv_use_threads(backends.back().get(), device, params.n_threads);
        graph->bind(backends.back().get());
    }
    for (const uint32_t l : members) {
        if (reason.empty() || graph->missing(layers[l].graph_layer()).empty()) {
            layers[l].stages = RESTKV_STAGES_GRAPH;
            layers[l].graph  = graph.get();
        }
    }
    all.push_back(std::move(graph));
    return reason;
}

void restkv_devices::bind(ggml_backend_sched_t sched) {
    for (const auto & graph : all) {
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

std::string restkv_devices::names() const {
    std::string names;
    for (const auto & graph : all) {
        const char * name = ggml_backend_dev_name(graph->device);
        names += (names.empty() ? "" : ",") + std::string(name);
    }
    return names;
}

size_t restkv_devices::bytes() const {
    size_t n = 0;
    for (const auto & graph : all) {
        n += graph->bytes() + graph->host_bytes();
    }
    return n;
}

void restkv_devices::wait() const {
    for (const auto & graph : all) {
        graph->wait();
    }
}
