// How a budget is shared out: over the layers (pyramid), or over the KV heads of a layer as their scores ask (ada).

#pragma once

#include "restkv.h"

#include <cstdint>
#include <vector>

// What restkv_arm_shares() leaves for the next cache; see restkv_share_params.
struct restkv_shares {
    int32_t               kind = RESTKV_ALLOCATION_UNIFORM;
    std::vector<uint32_t> budgets;        // pyramid: [evicting layers]
    int32_t               n_past   = -1;  // pyramid
    uint32_t              head_max = 0;   // ada
    double                floor    = 0.0;
};

// Past cells of every head of a layer, from its scores rows[h][n[h]]: `mean` per head in total, or all cells if there are
// fewer; at most `most` per head (0: no limit), at least about mean * floor. AdaKV's steps with an exact total: what
// rounding leaves over goes to the heads that are furthest below their share, ties to the lower head.
std::vector<uint32_t> restkv_share_heads(const std::vector<const float *> & rows, const std::vector<uint32_t> & n,
                                         uint32_t mean, double floor, uint32_t most, bool normalize);
