// The stages as ggml graphs, run by the backend that holds the cache. Made of ops that every backend has:
//
//   attend, score   a graph per group of KV heads; a few floats per query head and cell come back, once per layer
//   smooth, select  on the host, the same code as everywhere
//   compact         a graph per layer that moves the rows as raw bytes
//
// K and V never leave the device. Nothing here knows llama.cpp's cache: it works on tensors of one buffer type.

#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"
#include "graph/shapes.h"
#include "methods/methods.h"
#include "stages/stages.h"

#include <string>
#include <vector>

// Which part of a method has a graph: as its row says.
restkv_graph_kind restkv_graph_kind_of(const restkv_params & params);

// Whether queries are needed.
inline bool restkv_graph_attends(restkv_graph_kind kind) {
    return kind >= RESTKV_GRAPH_VOTES;
}

// Whether an eviction has something to compute before it selects.
inline bool restkv_graph_scores_cells(restkv_graph_kind kind) {
    return kind != RESTKV_GRAPH_NONE && kind != RESTKV_GRAPH_MOVES && kind != RESTKV_GRAPH_VOTES;
}

// Weights of the rows of the window, or none: a plain sum, or the largest of them.
std::vector<float> restkv_graph_weights(const restkv_params & params, uint32_t n_rows);

// Whether of the rows of the window the largest counts.
bool restkv_graph_takes_largest(const restkv_params & params);

// One layer's cache, all tensors in the same buffer type. Row of k: [n_head_kv][d_k]; of v: [n_head_kv][d_v].
struct restkv_graph_layer {
    ggml_tensor * k      = nullptr;  // [n_head_kv * d_k, cells]
    ggml_tensor * v      = nullptr;  // [n_head_kv * d_v, cells]
    ggml_tensor * ring   = nullptr;  // F32 [n_head * d_k, slots], or null: no queries
    ggml_tensor * wo     = nullptr;  // F32 [d_v, d_v, n_head] upper factors, or null: identity
    ggml_tensor * hidden = nullptr;  // F16 [cells, n_head_kv] -inf where a KV head holds nothing, or null

    uint32_t n_head    = 0;
    uint32_t n_head_kv = 0;
    uint32_t d_k       = 0;
    uint32_t d_v       = 0;

    float         kq_scale = 1.0f;
    float         softcap  = 0.0f;     // 0: none
    const float * sinks    = nullptr;  // [n_head] on the host, or null
};

// A view of the rows of every KV head, of d values each, as words: [words, cells, n_head_kv]. The type says nothing about
// their content; words are only ever copied.
ggml_tensor * restkv_graph_words(ggml_context * ctx, ggml_tensor * cache, uint32_t d, uint32_t n_head_kv);

// The cells and rows of one eviction. The rows, their weights and what they see of the newest cells are the same for all
// its layers.
struct restkv_graph_cells {
    uint32_t first   = 0;                   // row of the first one
    uint32_t n_cells = 0;                   // N
    uint32_t n_past  = 0;                   // L

    const int32_t * row_slots = nullptr;    // [n_rows] rows of the ring, oldest first
    uint32_t        n_rows    = 0;
    const float *   weights   = nullptr;    // [n_rows], or null: a plain sum or the largest
    const int32_t * n_visible = nullptr;    // [n_rows] ascending: a row sees the first cells, all but the newest

    uint32_t         drift_top  = 0;        // cells per row that the drift is measured over; 0: none
    const uint32_t * drift_tops = nullptr;  // [n_head_kv] where cells are hidden: of each head, at most drift_top
    const int32_t *  pos        = nullptr;  // [n_head_kv][N] positions, for the drift
};

// What comes back of one layer, in memory of the restkv_graph: see restkv_graph::finish().
struct restkv_graph_scores {
    uint32_t n_cols = 0;  // N, and one more column where the model has attention sinks
    uint32_t n_past = 0;
    uint32_t n_rows = 0;

    const float * abar      = nullptr;  // [n_head][n_cols] attention, aggregated over the rows
    const float * distance2 = nullptr;  // [n_head][n_past] squared distance to the output, or null
    const float * others    = nullptr;  // [n_head][d_v] weighted sum of the values, cells above DOMINANT left out
    const float * dominant  = nullptr;  // [n_head][d_v] the weighted value of that cell
    const float * raw       = nullptr;  // [n_head][n_past] scores but for dominant cells, or null. Where it is there,
                                        // others and dominant are [n_head][n_rows][d_v] and abar is null
    const float * tops = nullptr;  // [n_head][n_rows][RESTKV_GRAPH_TOP] of the dominant cell: its number, its weight
                                   // or 0, all other weights, and the length of the output
    const float * lengths2 = nullptr;  // [n_head_kv][n_past] squared lengths of keys or values, or null
    const float * dots     = nullptr;  // [n_head_kv][n_past] keys times the mean of all unit keys, or null
    const float * mean     = nullptr;  // [n_head_kv][d_k] that mean
    const float * drift    = nullptr;  // [n_head][n_rows][4] see restkv_graph_drift(), or null
};

// A cell whose aggregated weight is above this takes most of the attention: o - v_j cancels, and it is scored on the
// host. There is at most one per query head.
constexpr float RESTKV_GRAPH_DOMINANT = 0.75f;

constexpr uint32_t RESTKV_GRAPH_TOP = 4;

// Raw scores of the past cells of query head h, from cell `first` on. wo: its factor on the host, or null.
void restkv_graph_raw(const restkv_graph_scores & scores, const restkv_params & params,
                      const restkv_graph_layer & layer, uint32_t h, const float * wo, uint32_t first, float * raw);

// The drift t of query head h, in positions. top: as drift_top or drift_tops.
double restkv_graph_drift(const restkv_graph_scores & scores, uint32_t h, uint32_t top);

// Where a backend has threads of its own, as the CPU: so many, or all cores for 0.
void restkv_use_threads(ggml_backend_t backend, ggml_backend_dev_t device, uint32_t n_threads);

// One device: its work memory, and the graphs.
class restkv_graph {
public:
    struct sizes {
        uint32_t n_cells;      // most cells
        uint32_t n_rows;       // most rows at a time, of the window or of queries that vote
        uint32_t n_kept;       // most cells that survive
        size_t   tile_floats;  // largest intermediate tensor; 0: the default
    };

    // Of a cache with these settings.
    static sizes sizes_of(const restkv_params & params, uint32_t n_cells, uint32_t n_kept);

    // What a layer's graphs take, factors aside: as bytes() and host_bytes() after reserve(), allocating nothing. Its
    // tensors need no memory.
    struct needs {
        size_t device;
        size_t host;
    };

    static needs measure(ggml_backend_dev_t device, const restkv_params & params, const sizes & most,
                         const restkv_graph_layer & layer);

    // Throws std::runtime_error when the device has no memory for the inputs.
    restkv_graph(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft, const restkv_params & params,
                 const sizes & most, const std::vector<restkv_graph_layer> & layers);

    const ggml_backend_dev_t device;

    const bool exact;  // see restkv_multiplies_exactly()

    // Keep the factors of a layer on the device. data: [n_head][d_v][d_v]. Throws std::runtime_error.
    ggml_tensor * keep_factors(const float * data, uint32_t d_v, uint32_t n_head);

    // The first thing that the device cannot do for this layer, or "". Sinks and drift are asked for as if present.
    std::string missing(const restkv_graph_layer & layer) const;

    // Reserve work memory for the largest eviction of this layer. Throws std::runtime_error.
    void reserve(const restkv_graph_layer & layer);

    // The backend that runs the graphs, of this device; for as long as it lives. Null: none.
    void bind(ggml_backend_t backend) { this->backend = backend; }
    bool bound() const { return backend != nullptr; }

    // One eviction (queue.cpp): start(), then begin(), finish() and move() of each layer in the same order, then wait().
    // Where the backend can, begin() and move() only queue their work, which runs in the order of the calls. They throw
    // std::runtime_error when the backend fails; wait() is due then too, before the cache is touched in another way.
    void                start(const restkv_graph_cells & cells);
    void                begin(const restkv_graph_layer & layer, const restkv_graph_cells & cells);
    restkv_graph_scores finish();  // of the layer begun first; they hold until the next but one begin(), or finish()
    void                move(const restkv_graph_layer & layer, const int32_t * from, uint32_t n, uint32_t first = 0);
    void                wait();

    // move(): of every KV head, row from[i] comes to row first + i. from: [n_head_kv][n], ascending in each head but for
    // rows that stay where they are, which may come before the others.

    // Whether the next layer may begin before the last one is finished.
    bool ahead() const { return buffer_sets.size() > 1; }

    // start, begin and finish of a single layer.
    restkv_graph_scores score(const restkv_graph_layer & layer, const restkv_graph_cells & cells);

    ggml_backend_buffer_type_t buffer_type() const { return buft; }

    size_t bytes() const;         // on the device: inputs, results, factors, work memory
    size_t factor_bytes() const;  // of these the factors
    size_t host_bytes() const;    // on the host: where inputs and results pass through

private:
    friend class restkv_graph_builder;

    struct tile;

    restkv_graph(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft, const restkv_params & params,
                 const sizes & most, const std::vector<restkv_graph_layer> & layers, bool dry);

    // Where a layer's results lie, in floats. values: others of all heads, then dominant.
    struct layout {
        size_t abar, distances, values, tops, lengths, dots, mean, drift, total;
    };

    // What one layer under way needs until it is finished.
    struct buffer_set {
        ggml_backend_event_ptr        read;     // its results are there
        std::vector<ggml_context_ptr> built;    // its graphs
        restkv_graph_scores           scores;
        ggml_tensor *                 sinks;    // F32 [n_head]
        ggml_tensor *                 pos;      // F32 [n_head_kv * n_cells], the first position of each head is 0
        ggml_tensor *                 tops;     // F32 [n_head_kv] drift_tops, or null
        ggml_tensor *                 results;  // F32 [n_results], see layout
        float *                       host_sinks;
        float *                       host_pos;
        float *                       host_tops;
        float *                       host_results;
        size_t                        n_used = 0;  // of the results
    };

    // The rows of one move that may still be under way.
    struct batch {
        ggml_backend_event_ptr read;
        ggml_context_ptr       built;
        ggml_tensor *          from;  // I32 [n_head_kv * n_kept]
        int32_t *              host_from;
        bool                   used = false;
    };

    tile             tile_of(const restkv_graph_layer & layer, uint32_t n_cols, uint32_t n_rows) const;
    layout           layout_of(const restkv_graph_layer & layer, const restkv_graph_cells & cells) const;
    ggml_context_ptr new_context() const;
    void             run(ggml_gallocr_t memory, ggml_cgraph * gf);
    void             wait_for_shape(ggml_cgraph * gf);
    void             init_buffer_sets();
    void             init_staging();
    void             upload(ggml_tensor * to, const void * data, size_t bytes);
    void move_some(const restkv_graph_layer & layer, const int32_t * from, uint32_t n, uint32_t first, bool up);
    ggml_cgraph * build_moves(ggml_context * ctx, const restkv_graph_layer & layer, ggml_tensor * from, uint32_t n,
                              uint32_t first, bool up) const;

    const ggml_backend_buffer_type_t buft;
    const restkv_params &            params;
    const restkv_graph_kind          kind;
    const bool                       takes_largest;      // of the rows, and not their sum
    const sizes                      most;
    const bool                       dry;                // only measures
    bool                             hides     = false;  // a layer has hidden cells
    uint32_t                         n_head    = 1;      // most of a layer
    uint32_t                         n_head_kv = 1;
    ggml_backend_t                   backend   = nullptr;

    ggml_context_ptr        inputs_ctx;
    ggml_backend_buffer_ptr inputs;   // dry: empty
    ggml_tensor *           slots;    // I32 [n_rows]
    ggml_tensor *           weights;  // F32 [n_rows]
    ggml_tensor *           mask;     // F32 [n_rows * n_rows] of the newest cells
    size_t                  n_results;

    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> factors;

    ggml_gallocr_ptr memory_score;
    ggml_gallocr_ptr memory_move;
    restkv_shapes    shapes;              // of the graphs in this memory

    needs measured = {};                  // dry: so far

    ggml_backend_buffer_ptr staging;      // on the host
    std::vector<buffer_set> buffer_sets;  // 2, or 1 where all is waited for
    std::vector<batch>      batches;      // as many
    uint32_t                n_begun    = 0;
    uint32_t                n_finished = 0;
    uint32_t                n_moved    = 0;
    int32_t *               host_slots;
    float *                 host_weights;
    float *                 host_mask;
};
