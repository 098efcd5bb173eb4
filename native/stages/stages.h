// The stages of one eviction on the CPU, for one KV head at a time:
//
//   attend -> score -> smooth -> select -> compact
//
// Scores and smoothing are per query head of the group; one set is selected per KV head.
// Nothing here knows llama.cpp's cache: it works on views of memory.

#pragma once

#include "ggml.h"
#include "restkv.h"
#include "stages/cpu/kernels.h"

#include <cstdint>
#include <vector>

// One KV head of a layer. Cells are in ascending order of position.
struct restkv_view {
    // Keys and values: head_dim values per cell, `stride` bytes from cell to cell.
    const uint8_t * k        = nullptr;
    const uint8_t * v        = nullptr;
    size_t          k_stride = 0;
    size_t          v_stride = 0;
    ggml_type       k_type   = GGML_TYPE_F32;
    ggml_type       v_type   = GGML_TYPE_F32;

    uint32_t        n_cells = 0;        // N: columns of the softmax
    uint32_t        n_past  = 0;        // L: candidates, the first cells
    const int32_t * pos     = nullptr;  // [N]

    // Queries of the window, post-RoPE, [group][n_rows][d_k], oldest row first.
    const float *   q       = nullptr;
    uint32_t        n_rows  = 0;
    const int32_t * row_pos = nullptr;  // [n_rows] a row sees the cells up to its own position

    uint32_t group = 1;
    uint32_t d_k   = 0;
    uint32_t d_v   = 0;

    // The model's own attention formula.
    float         scale   = 1.0f;
    float         softcap = 0.0f;     // 0: none
    const float * sinks   = nullptr;  // [group] logits of cells without a value, or null

    // Upper factors R of W_h' W_h, [group][d_v][d_v]: ||W_h x|| = ||R x||. Null: identity.
    const float * wo = nullptr;

    // Which head this is, for the methods random and lacache.
    uint32_t layer    = 0;
    uint32_t head_kv  = 0;
    uint32_t i_layer  = 0;  // index among the evicting layers, and their number
    uint32_t n_layers = 1;
    uint32_t cursor   = 0;  // where the last eviction stopped (restkv_method::advance)

    // Votes of all queries so far, [N], or null (restkv_method::accumulates).
    const float * sums = nullptr;
};

struct restkv_times {
    int64_t attend  = 0;  // microseconds
    int64_t score   = 0;
    int64_t smooth  = 0;
    int64_t select  = 0;
    int64_t compact = 0;
};

// Work memory of one thread, sized once: a few floats per cell and query head of a group, and panels of fixed size.
class restkv_scratch {
public:
    restkv_scratch(uint32_t n_cells, uint32_t group, uint32_t d_k, uint32_t d_v, uint32_t n_rows);

    static size_t bytes(uint32_t n_cells, uint32_t group, uint32_t d_k, uint32_t d_v, uint32_t n_rows);

    uint32_t n_pad;                  // cells, padded
    uint32_t panel_k;                // cells per panel of keys
    uint32_t panel_v;                // cells per panel of values
    uint32_t block_rows;             // rows of logits at a time

    std::vector<float>    keys;      // [d_k][panel_k]
    std::vector<float>    values;    // [d_v][panel_v]
    std::vector<float>    logits;    // [block_rows][n_pad]
    std::vector<float>    raw;       // [group][n_pad]
    std::vector<float>    smoothed;  // [group][n_pad]
    std::vector<float>    row;       // [max(n_pad, d)]
    std::vector<uint16_t> bins;      // [n_pad]
    std::vector<int32_t>  kept;      // [n_pad]
    std::vector<int32_t>  pos;       // [n_pad]
    std::vector<float>    queries;   // [group][n_rows][d_k]
    std::vector<double>   drift;     // [group]
    std::vector<int32_t>  kernels;   // [group]
    std::vector<int32_t>  shifts;    // [group]

    restkv_times times;

    // which view's panel is loaded, so that query heads of a group share it
    const uint8_t * keys_of     = nullptr;
    uint32_t        keys_from   = 0;
    const uint8_t * values_of   = nullptr;
    uint32_t        values_from = 0;
};

// ---- attend ------------------------------------------------------------------------------------

// A row of window attention, as `attend` hands it over. a[0 .. n_visible) sums to at most 1.
struct restkv_row {
    uint32_t head;  // in the group
    uint32_t index;
    float *  a;
    uint32_t n_visible;
    uint32_t top;   // cell with the largest weight
    double   rest;  // 1 - a[top], from the sum of the others
};

class restkv_row_sink {
public:
    virtual ~restkv_row_sink()               = default;
    virtual void row(const restkv_row & row) = 0;
};

// Softmax statistics of the window (ReST-KV section 2; official code: softmax over all cells, causal inside the window).
// Calls `sink` for every head of the group and every row in order. When `drift_top` > 0, also measures the drift t of
// every head over the `drift_top` largest cells of each row (positions, first half of the rows minus second half).
void restkv_attend(const restkv_view & view, restkv_scratch & scratch, uint32_t drift_top, restkv_row_sink & sink);

// Fill scratch.keys with the panel that starts at cell `from`; returns its number of cells.
uint32_t restkv_load_keys(const restkv_view & view, restkv_scratch & scratch, uint32_t from);

// Fill scratch.values with the panel that starts at cell `from`; returns its number of cells.
uint32_t restkv_load_values(const restkv_view & view, restkv_scratch & scratch, uint32_t from);

// Weights of the rows, oldest first, as params.rows says. EMA: e_0 = (1-alpha)^(w-1), e_i = alpha (1-alpha)^(w-1-i). MAX:
// none, as nothing is added up.
std::vector<float> restkv_row_weights(const restkv_params & params, uint32_t n_rows);

// ---- smooth ------------------------------------------------------------------------------------

// Kernel and shift of the adaptive pooling from the drift t (ReST-KV, spatial smoothing).
void restkv_adapt(double t, uint32_t scale, uint32_t kernel, int32_t * kernel_out, int32_t * shift_out);

// Pool raw[n] over text positions: survivors only, no score leaks across a gap.
void restkv_smooth(const float * raw, const int32_t * pos, uint32_t n, int32_t pooling, int32_t kernel, int32_t shift,
                   float * out);

// ---- select ------------------------------------------------------------------------------------

// The n_keep largest, ties to the lower index, ascending. Returns how many: min(n, n_keep).
uint32_t restkv_select_top(const float * scores, uint32_t n, uint32_t n_keep, int32_t * out);

// ---- all but compact, for one KV head ----------------------------------------------------------

// Fills scratch.raw, smoothed, kernels, shifts and, for reduce mean or max, scratch.kept with the n_keep past cells to
// keep. drift: measure it (adaptive pooling only); without it the kernel is params.kernel and the shift 0.
void restkv_score_head(const restkv_view & view, const restkv_params & params, uint32_t drift_top, uint32_t n_keep,
                       restkv_scratch & scratch);

// Only smooth and select, of raw scores that stand in scratch.raw (and, when `drifts`, drifts in scratch.drift).
void restkv_choose(const restkv_view & view, const restkv_params & params, bool drifts, uint32_t n_keep,
                   restkv_scratch & scratch);
