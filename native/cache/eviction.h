// One eviction: every layer is scored where its rows lie, and what survives moves to the front. Every (layer, KV head) is
// a task of its own; a task reads its head's cells, selects and moves them. Other heads of the same cells lie in other
// bytes, so tasks never meet, and results do not depend on how many threads there are.
//
//   eviction.cpp  all layers, in the three ways that they run
//   tasks.cpp     a head or a layer in host memory
//   pipeline.cpp  layers that run as graphs, overlapping

#pragma once

#include "cache/core.h"
#include "cache/view.h"

#include <atomic>
#include <functional>

// What all tasks share.
struct restkv_plan {
    uint32_t                n_end   = 0;  // number of the last cell in use, guide included, plus 1
    uint32_t                n_guide = 0;  // of them, the guide's
    std::vector<int32_t>    tail_pos;     // positions of the cells since the last eviction
    restkv_sequence::window window;       // the queries that score

    std::atomic<bool> moved{ false };     // set before the first row or vote moves: there is no way back
};

// What a layer is left with.
struct restkv_survivors {
    std::vector<int32_t>  table;  // [n_head_kv][budget] positions
    std::vector<uint32_t> held;   // [n_head_kv] cells
    std::vector<int32_t>  from;   // [n_head_kv][budget] rows that they lie in until they move; of graphs only
};

class restkv_eviction {
public:
    restkv_eviction(restkv_core & core, restkv_plan & plan);

    // Score and compact all layers; the tables are those of afterwards. Throws what fails; plan.moved tells whether the
    // cache is as it was.
    void run(restkv_event & event);

private:
    struct scored;  // a layer that runs as a graph, until its cells are selected

    // Fills s.row with the scores of a KV head; returns how many of its past cells are to stay.
    using choose_head = std::function<uint32_t(uint32_t h, restkv_scratch & s)>;
    // The n_keep past cells of s.kept stay.
    using keep_head   = std::function<void(uint32_t h, uint32_t n_keep, restkv_scratch & s)>;

    // eviction.cpp
    size_t   sort_layers();
    void     make_scratch(uint32_t n_tasks);
    void     evict_in_memory();
    void     evict_copied(size_t n_copy);
    void     take_tables(restkv_event & event);
    uint32_t n_doc(uint32_t l, uint32_t h) const;   // cells of a head without the guide
    uint32_t n_past(uint32_t l, uint32_t h) const;  // cells that it chooses from: all but the window and the guide
    bool     drifts(const int32_t * pos, uint32_t n_cells) const;

    // tasks.cpp
    void     fill_pos(uint32_t l, uint32_t h, std::vector<int32_t> & pos) const;
    uint32_t score_task(uint32_t l, uint32_t h, restkv_scratch & s, bool selects);
    void     move_task(uint32_t l, uint32_t h, uint32_t n_keep, restkv_scratch & s);
    void     move_votes(uint32_t l, uint32_t h, const int32_t * kept_cells, uint32_t n_kept);
    void     evict_head(uint32_t l, uint32_t h, restkv_scratch & s);
    void     evict_one_set(uint32_t l, restkv_scratch & s);
    void     evict_shared(uint32_t l);
    uint32_t choose_one_set(uint32_t l, uint32_t n, restkv_scratch & s, const std::function<void(uint32_t)> & score_of);
    void     share_heads(uint32_t l, const choose_head & choose, const keep_head & keep);

    // pipeline.cpp
    void     evict_as_graphs(restkv_event & event);
    void     prepare(uint32_t l, scored & out) const;
    uint32_t choose_task(uint32_t l, uint32_t h, const scored & in, const restkv_graph_scores & scores,
                         restkv_scratch & s);
    void     keep_task(uint32_t l, uint32_t h, const scored & in, uint32_t n_keep, restkv_scratch & s);
    void     queue_moves(uint32_t l) const;

    restkv_core &               core;
    restkv_plan &               plan;
    const restkv_params &       params;
    const restkv_method &       method;
    std::vector<restkv_layer> & layers;
    restkv_sequence &           seq;

    uint32_t                                   group = 1, d_k = 1, d_v = 1;  // most of a layer
    std::vector<restkv_host_rows>              data;                         // by layer
    std::vector<restkv_survivors>              kept;                         // likewise
    std::vector<std::pair<uint32_t, uint32_t>> tasks;                        // (layer, KV head) in host memory
    std::vector<uint32_t>                      joint;    // layers in host memory whose heads share their budgets
    std::vector<uint32_t>                      copied;   // layers that go through the host
    std::vector<uint32_t>                      as_graph;
    std::vector<restkv_scratch>                scratch;  // [n_threads]
    uint32_t                                   n_threads = 1;
};
