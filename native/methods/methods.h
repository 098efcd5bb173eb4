// A method scores the past cells of one KV head: high means keep.
// To add one: a file beside this one, which ends with the method's row, and its line in methods.cpp. Nothing else in the
// native code knows a method by its name.

#pragma once

#include "stages/stages.h"

#include <string>
#include <vector>

// Which budgets a method works with.
enum restkv_budgets {
    RESTKV_BUDGETS_ANY,    // of every layer and KV head its own
    RESTKV_BUDGETS_LAYER,  // of every layer its own: all heads keep the same cells
    RESTKV_BUDGETS_ONE,    // one for all: the heads keep one set, or votes and ladder count on it
};

// Which part of a method has a graph.
enum restkv_graph_kind {
    RESTKV_GRAPH_NONE,         // none: another way must be taken
    RESTKV_GRAPH_MOVES,        // scores need nothing of the cells; the rows move on the device
    RESTKV_GRAPH_LENGTHS,      // lengths of the keys
    RESTKV_GRAPH_ANGLES,       // and each key's product with the mean of all unit keys
    RESTKV_GRAPH_VOTES,        // attention of every query, while the text is read; an eviction moves rows
    RESTKV_GRAPH_ATTENTION,    // attention of the window
    RESTKV_GRAPH_ATTENTION_V,  // and lengths of the values
    RESTKV_GRAPH_OUTPUT,       // attention of the window, and each cell's distance to the output
    RESTKV_GRAPH_BEFORE,       // of each query of the window its attention and each cell's distance to its output
};

template <restkv_graph_kind KIND>
restkv_graph_kind restkv_graph_is(const restkv_params &) {
    return KIND;
}

// The row of a method.
struct restkv_method {
    const char * name;
    const char * summary;

    bool uses_queries;  // needs the window's queries (else no ring is kept)
    bool uses_wo;       // may need W_o
    bool pools;         // its scores are smoothed

    // raw: scratch.raw, [group][scratch.n_pad], the first view.n_past of each row
    void (*score)(const restkv_view & view, const restkv_params & params, uint32_t drift_top, restkv_scratch & scratch);

    // What of it runs as a graph where the cells are on a device; restkv_graph_is<...> when the settings do not matter
    restkv_graph_kind (*graph)(const restkv_params & params);

    // Weights of the rows of the window when their attention is added up, oldest first; none: it is not, the largest
    // counts. Null: a plain sum.
    std::vector<float> (*row_weights)(const restkv_params & params, uint32_t n_rows) = nullptr;

    restkv_budgets budgets = RESTKV_BUDGETS_ANY;

    bool per_layer   = false;  // all KV heads of a layer keep one set: by the mean of their scores
    bool accumulates = false;  // every query votes once, and view.sums holds the votes (native/cache/votes.cpp)

    // Where the next eviction goes on, for methods that keep a place; n_cells without a guide. May be null.
    uint32_t (*advance)(const restkv_params & params, uint32_t n_layers, uint32_t n_cells, uint32_t cursor) = nullptr;

    // Why these settings do not work for a model with n_layers evicting layers, or "". May be null.
    std::string (*refuse)(const restkv_params & params, uint32_t n_layers) = nullptr;
};

// Null when there is no such method.
const restkv_method * restkv_find_method(const char * name);

// raw = weighted sum of the rows of attention; weights: [view.n_rows]. (attention.cpp)
void restkv_sum_attention(const restkv_view & view, const std::vector<float> & weights, uint32_t drift_top,
                          restkv_scratch & scratch);

// raw[j] = max(raw[j], mean of raw[0 .. n)): of the scores of a query head, where the largest row counts. (attention.cpp)
void restkv_raise_to_mean(float * raw, uint32_t n);

// The indicators of ReST-KV's ablation that look at attention, not at the output. (attention.cpp)
void restkv_score_attention(const restkv_view & view, const restkv_params & params, uint32_t drift_top,
                            restkv_scratch & scratch);

// A key that is not longer points nowhere (keydiff).
constexpr double RESTKV_KEY_LENGTH_MIN = 1e-12;

// ---- of restkv, for every way to run it ----------------------------------------------------------

// distance^tau, where tau acts.
float restkv_distance_power(double distance, const restkv_params & params);

// The score of a cell that takes most of the attention. a: its weight; rest: 1 - a, exact; others: [d] weighted sum of
// all other values; v: [d] its value; wo: [d][d] upper factor or null; x: [d] of scratch.
float restkv_score_top(double a, double rest, const double * others, const float * v, const float * wo, uint32_t d,
                       const restkv_params & params, std::vector<double> & x);
