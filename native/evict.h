// What the ways to run one eviction share; see evict.cpp and graph/evict.cpp.

#pragma once

#include "fault.h"
#include "methods/methods.h"
#include "restkv-cache.h"

#include "ggml-backend.h"

#include <atomic>
#include <cstdint>
#include <vector>

// What all tasks of one eviction share.
struct evict_plan {
    uint32_t             n_end   = 0;  // number of the last cell in use, guide included, plus 1
    uint32_t             n_guide = 0;  // of them, the guide's
    std::vector<int32_t> tail_pos;     // positions of the cells since the last eviction
    std::vector<int32_t> row_pos;
    std::vector<int32_t> row_slots;

    mutable std::atomic<bool> moved{ false };  // set before the first row or vote moves: there is no way back
};

// One layer's rows in host memory: the cache itself, or a copy.
struct layer_data {
    uint8_t *          k = nullptr;
    uint8_t *          v = nullptr;
    std::vector<float> ring;            // [window + 1][n_head * d_k]
    std::vector<float> sinks;           // [n_head], or empty
    float *            sums = nullptr;  // layer_state::sums, or null
};

// Inside a catch block: why, without taking memory. False where that has run out.
bool restkv_reason(char (&why)[RESTKV_REASON_MAX]) noexcept;

inline ggml_backend_buffer_t restkv_buffer_of(const ggml_tensor * t) {
    return t->buffer ? t->buffer : t->view_src->buffer;
}

// Whether the drift of a head is measured: it cannot reach one step while all positions lie within one step.
inline bool restkv_drifts(const restkv_method & method, const restkv_params & params, const evict_plan & plan,
                          const int32_t * pos, uint32_t n_cells) {
    return method.pools && params.pooling == RESTKV_POOLING_ADAPTIVE && plan.row_pos.size() > 1 &&
           (int64_t) pos[n_cells - 1] - pos[0] > (int64_t) params.scale;
}
// What a layer is left with.
struct layer_kept {
    std::vector<int32_t>  table;  // [n_head_kv][budget] positions
    std::vector<uint32_t> held;   // [n_head_kv] cells
    std::vector<int32_t>  from;   // [n_head_kv][budget] rows that they lie in until they move; of graphs only
};
