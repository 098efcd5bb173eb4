// One layer of a cache that evicts: where its rows lie, how its evictions run, and what was noted of its attention.

#pragma once

#include "graph/graph.h"
#include "restkv.h"

#include "ggml-backend.h"

#include <cstdint>
#include <vector>

inline ggml_backend_buffer_t restkv_buffer_of(const ggml_tensor * t) {
    return t->buffer ? t->buffer : t->view_src->buffer;
}

struct restkv_layer {
    uint32_t il        = 0;  // in the model
    uint32_t n_head    = 0;
    uint32_t n_head_kv = 0;
    uint32_t d_k       = 0;
    uint32_t d_v       = 0;
    float    softcap   = 0.0f;  // 0: none

    ggml_tensor * k    = nullptr;
    ggml_tensor * v    = nullptr;
    ggml_tensor * ring = nullptr;  // [n_head * d_k, n_ring + 1], the last row takes what nobody needs; or null
    ggml_tensor * mask = nullptr;  // ada: F16 [cells, n_head_kv], -inf where a head holds nothing; or null

    // How the budget is shared out (allocation.cpp).
    uint32_t budget   = 0;  // most cells of a head that survive
    uint32_t n_window = 0;  // of them, the last positions
    uint32_t first    = 0;  // cells before this one have no rows here

    // How this layer is evicted (devices.cpp).
    uint8_t        stages    = RESTKV_STAGES_FUSED;
    restkv_graph * graph     = nullptr;
    ggml_tensor *  wo_device = nullptr;  // [d_v, d_v, n_head] factors for the graph, or null

    std::vector<float> wo;               // [n_head][d_v][d_v] upper factors, or empty

    // Noted when llama.cpp builds a graph (ring.cpp).
    float         kq_scale = 0.0f;
    ggml_tensor * sinks    = nullptr;
    bool          captured = false;
    bool          has_bias = false;

    uint32_t group() const { return n_head / n_head_kv; }

    // [n_head] logits of the sinks on the host, or empty.
    std::vector<float> read_sinks() const {
        std::vector<float> out(sinks ? n_head : 0);
        if (sinks) {
            ggml_backend_tensor_get(sinks, out.data(), 0, out.size() * sizeof(float));
        }
        return out;
    }

    restkv_graph_layer graph_layer() const {
        restkv_graph_layer g;
        g.k         = k;
        g.v         = v;
        g.ring      = ring;
        g.wo        = wo_device;
        g.hidden    = mask;
        g.n_head    = n_head;
        g.n_head_kv = n_head_kv;
        g.d_k       = d_k;
        g.d_v       = d_v;
        g.kq_scale  = kq_scale;
        g.softcap   = softcap;
        return g;
    }
};
