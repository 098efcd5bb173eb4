// What is known of the text in a cache: which positions its heads hold, whose queries are remembered, and how far it can
// be cut. Nothing here knows llama.cpp; a cache has one sequence today.
//
// A cell is shared by all KV heads of all layers in llama.cpp's own table. After an eviction every KV head of every layer
// holds its own set of positions in the same cells: cells before `n_table` are those of the tables here, and llama.cpp's
// table has the cells from there on. Used cells are always in ascending order of position: an eviction compacts, and only
// the end can be cut.
//
// With shares (restkv_arm_shares) layers, or heads, hold different numbers of cells. The numbering stays common to all: an
// eviction leaves each its last cells before `n_row_max`, and what lies before those is hidden from it.

#pragma once

#include "restkv.h"

#include "llama.h"

#include <cstdint>
#include <vector>

// The cells of one layer.
struct restkv_held {
    std::vector<int32_t>  table;       // [n_head_kv][budget] positions
    std::vector<uint32_t> held;        // [n_head_kv] cells left by the last eviction
    std::vector<float>    sums;        // [n_head_kv][capacity] attention of all queries so far, or empty (method h2o)
    uint32_t              hidden = 0;  // cells before this one are seen by no head
};

struct restkv_sequence {
    // Queries in the ring of the last positions.
    struct window {
        std::vector<int32_t> pos;
        std::vector<int32_t> slots;  // rows of the ring
    };

    std::vector<restkv_held> layers;
    std::vector<llama_pos>   ring_pos;  // [n_ring] position whose query a row of the ring holds, or -1

    uint32_t  start     = 0;            // first cell of a new text, so that every layer has its cells
    uint32_t  capacity  = 0;            // of the sums
    uint32_t  n_table   = 0;            // 0, or n_row_max
    llama_pos pos_exact = 0;            // position after the last eviction
    uint32_t  cursor    = 0;            // where the next eviction goes on (restkv_method::advance)
    bool      lost      = false;        // an eviction failed on its way: nothing is stored until it is cleared

    // Method h2o (votes.cpp).
    char      votes_lost[RESTKV_REASON_MAX] = "";  // why, or ""
    llama_pos pos_seen                      = 0;   // queries before it have voted
    int64_t   us_votes                      = 0;   // since the last eviction
    uint32_t  n_voted                       = 0;   // likewise

    uint64_t n_evictions = 0;
    uint64_t n_evicted   = 0;

    // First cell after the last eviction.
    uint32_t tail_begin() const { return n_table > 0 ? n_table : start; }

    // Cells of a head before it.
    uint32_t held(uint32_t l, uint32_t head_kv) const { return n_table > 0 ? layers[l].held[head_kv] : 0; }

    void clear();

    // Queries and votes of what is cut from position p0 on.
    void forget_from(llama_pos p0);

    // The queries of the last n_max positions before pos_next that are there, oldest first. pairs: an even number of
    // them, so that the drift compares halves of one size.
    window rows(llama_pos pos_next, uint32_t n_max, bool pairs) const;
};
