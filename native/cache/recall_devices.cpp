#include "cache/recall_devices.h"

#include "cache/devices.h"

#include <algorithm>
#include <map>
#include <stdexcept>

void restkv_recall_devices::init(const std::vector<restkv_layer> & layers, const restkv_params & params,
                                 const std::vector<ggml_type> & types, const restkv_recall_graph::sizes & most) {
    by_layer.assign(layers.size(), nullptr);
    // the layers that should run as graphs, by where they live
    std::map<std::pair<ggml_backend_buffer_type_t, ggml_type>, std::vector<uint32_t>> wanted;
    for (uint32_t l = 0; l < layers.size(); ++l) {
        const ggml_backend_buffer_t buffer = restkv_buffer_of(layers[l].k);
        const bool                  host   = ggml_backend_buffer_is_host(buffer);
        if (params.stages == RESTKV_STAGES_GRAPH || (params.stages == RESTKV_STAGES_AUTO && !host)) {
            wanted[{ ggml_backend_buffer_get_type(buffer), types[l] }].push_back(l);
        }
    }
    for (const auto & [where, members] : wanted) {
        std::string why;
        try {
            why = init_graph(layers, members, where.first, where.second, params.n_threads, most);
        } catch (const std::runtime_error & e) {
            why = e.what();
        }
        reason_ = reason_.empty() ? why : reason_;
    }
}

// Returns why some of the layers will not run as graphs, or "".
std::string restkv_recall_devices::init_graph(const std::vector<restkv_layer> & layers,
                                              const std::vector<uint32_t> & members, ggml_backend_buffer_type_t buft,
                                              ggml_type type, uint32_t n_threads,
                                              const restkv_recall_graph::sizes & most) {
    std::string              reason;
    const ggml_backend_dev_t device = restkv_find_runner(buft, reason);
    if (!device) {
        return reason;
    }
    std::vector<restkv_graph_layer> shapes;
    for (const uint32_t l : members) {
        shapes.push_back(layers[l].graph_layer());
    }
    auto                  graph = std::make_unique<restkv_recall_graph>(device, buft, type, most, shapes, n_threads);
    std::vector<uint32_t> able;
    for (size_t i = 0; i < members.size(); ++i) {
        const std::string lacked = graph->missing(shapes[i]);
        if (!lacked.empty()) {
            reason = std::string(ggml_backend_dev_name(device)) + " cannot run " + lacked + " for a recall";
            continue;
        }
        graph->reserve(shapes[i]);
        able.push_back(members[i]);
    }
    for (const uint32_t l : able) {
        by_layer[l] = graph.get();
    }
    if (!able.empty()) {
        all.push_back(std::move(graph));
    }
    return reason;
}

uint32_t restkv_recall_devices::n_layer_graph() const {
    return (uint32_t) (by_layer.size() - std::count(by_layer.begin(), by_layer.end(), nullptr));
}

std::string restkv_recall_devices::names() const {
    std::string names;
    for (const auto & graph : all) {
        const char * name = ggml_backend_dev_name(graph->device);
        names += (names.empty() ? "" : ",") + std::string(name);
    }
    return names;
}

size_t restkv_recall_devices::bytes() const {
    size_t n = 0;
    for (const auto & graph : all) {
        n += graph->bytes() + graph->host_bytes();
    }
    return n;
}
