// What one eviction works with; see evict.cpp.

#pragma once

#include "restkv-cache.h"

#include <cstdint>
#include <vector>

// What all tasks of one eviction share.
struct evict_plan {
    uint32_t             n_cells;   // in use, guide included
    uint32_t             n_past;    // candidates
    uint32_t             n_kept;    // cells that survive
    uint32_t             n_window;  // of them, the last positions
    std::vector<int32_t> tail_pos;  // positions of the cells [n_table, n_cells)
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
