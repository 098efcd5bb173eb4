// Which layers of a cache with an archive attend on their device when they recall.

#pragma once

#include "cache/layer.h"
#include "graph/recall.h"

#include <memory>
#include <string>
#include <vector>

class restkv_recall_devices {
public:
    // Decide for every layer, and take its memory. types: of the archive's keys, by layer.
    void init(const std::vector<restkv_layer> & layers, const restkv_params & params,
              const std::vector<ggml_type> & types, const restkv_recall_graph::sizes & most);

    // Attends for this layer; null: the threads of the CPU do.
    restkv_recall_graph * of(uint32_t l) const { return by_layer[l]; }

    const std::vector<std::unique_ptr<restkv_recall_graph>> & graphs() const { return all; }

    uint32_t    n_layer_graph() const;
    std::string names() const;  // "CUDA0,CUDA1"
    size_t      bytes() const;

    const std::string & reason() const { return reason_; }  // why a layer that should be a graph is none, or ""

private:
    std::string init_graph(const std::vector<restkv_layer> & layers, const std::vector<uint32_t> & members,
                           ggml_backend_buffer_type_t buft, ggml_type type, uint32_t n_threads,
                           const restkv_recall_graph::sizes & most);

    std::vector<restkv_recall_graph *>                by_layer;
    std::vector<std::unique_ptr<restkv_recall_graph>> all;  // one per buffer type and type of keys
    std::string                                       reason_;
};
