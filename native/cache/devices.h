// Which layers of a cache run their stages as graphs, and on which backend.

#pragma once

#include "cache/layer.h"

#include "ggml-cpp.h"

#include <memory>
#include <string>
#include <vector>

// The device that runs graphs on memory of this type. Null, and `reason` says why none does.
ggml_backend_dev_t restkv_find_runner(ggml_backend_buffer_type_t buft, std::string & reason);

class restkv_devices {
public:
    // Decide for every layer: sets its stages, graph and wo_device. n_cells: rows of the cache; n_kept: most that survive.
    void init(std::vector<restkv_layer> & layers, const restkv_params & params, uint32_t n_cells, uint32_t n_kept);

    // The backends of a context run the graphs. Throws std::runtime_error when one is missing.
    void bind(ggml_backend_sched_t sched);

    // Wait for what runs on any of them.
    void wait() const;

    const std::vector<std::unique_ptr<restkv_graph>> & graphs() const { return all; }

    std::string names() const;  // "CUDA0,CUDA1"
    size_t      bytes() const;

    const std::string & reason() const { return reason_; }  // why a layer that should be a graph is none, or ""

private:
    std::string init_graph(std::vector<restkv_layer> & layers, const std::vector<uint32_t> & members,
                           ggml_backend_buffer_type_t buft, const restkv_params & params, uint32_t n_cells,
                           uint32_t n_kept);

    std::vector<ggml_backend_ptr>              backends;  // those that only evictions use
    std::vector<std::unique_ptr<restkv_graph>> all;       // one per buffer type
    std::string                                reason_;
};
