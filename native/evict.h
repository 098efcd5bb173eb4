// What one eviction works with; see evict.cpp.

#pragma once

#include "restkv-cache.h"

#include <cstdint>
#include <vector>

// What all tasks of one eviction share.
struct evict_plan {
    uint32_t             n_end;     // number of the last cell in use, guide included, plus 1
    uint32_t             n_guide;   // of them, the guide's
    std::vector<int32_t> tail_pos;  // positions of the cells since the last eviction
    std::vector<int32_t> row_pos;
    std::vector<int32_t> row_slots;
};

// One layer's rows in host memory: the cache itself, or a copy.
struct layer_data {
    uint8_t *          k = nullptr;
    uint8_t *          v = nullptr;
    std::vector<float> ring;            // [window + 1][n_head * d_k]
    std::vector<float> sinks;           // [n_head], or empty
    float *            sums = nullptr;  // layer_state::sums, or null
};

// What a layer is left with.
struct layer_kept {
    std::vector<int32_t>  table;  // [n_head_kv][budget] positions
    std::vector<uint32_t> held;   // [n_head_kv] cells
};
