// Host arrays put onto a device, and the stages on them: what restkv_score_on() and restkv_time_on() share.

#pragma once

#include "api/score.h"
#include "graph/graph.h"

#include <memory>

// The device of this name. Null with restkv_last_error().
ggml_backend_dev_t restkv_find_device(const char * name);

// The sentence for a device that cannot run something.
std::string restkv_lacks(const char * device, const std::string & what);

// As restkv_check_score(), and RESTKV_UNSUPPORTED for what has no graph.
restkv_status restkv_check_score_on(const restkv_score_args & args, const restkv_score_out & out);

// Rows of K and V of one layer on a device, laid out as in a cache, and the backend that works on them.
class restkv_device_rows {
public:
    // rows_ring: of the ring of queries, 0 for none. Throws std::runtime_error when there is no memory for them.
    restkv_device_rows(ggml_backend_dev_t device, ggml_type type, uint32_t n_head, uint32_t n_head_kv, uint32_t d,
                       uint32_t n_cells, uint32_t rows_ring);

    const ggml_backend_dev_t         device;
    const ggml_backend_buffer_type_t buft;
    ggml_backend_ptr                 backend;
    restkv_graph_layer               layer;

private:
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;
};

class restkv_score_run {
public:
    // Throws std::runtime_error when the device has no memory. `lacks` says what it cannot do.
    restkv_score_run(const restkv_score_args & args, ggml_backend_dev_t device, size_t tile_floats);

    std::string lacks;

    void attend();                              // on the device
    void choose(const restkv_score_out & out);  // smooth and select, on the host
    void move(const int32_t * indices);         // indices: [n_head_kv][n_keep] of choose(); the window stays too

    restkv_device_rows rows;

private:
    const restkv_score_args &     args;
    const uint32_t                n_past;
    const uint32_t                n_keep;
    const std::vector<float>      wo;
    std::unique_ptr<restkv_graph> graph;
    std::vector<int32_t>          pos, slots, n_visible, selected;
    std::vector<bool>             drifts;
    std::vector<float>            weights;
    restkv_graph_cells            cells;
    restkv_graph_scores           scores;
    restkv_scratch                scratch;
};
