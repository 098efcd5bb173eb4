// Votes of queries (method h2o) on the device that holds the keys: one sum of attention per query head and cell comes back.

#include "restkv-cache.h"

#include "graph.h"

#include <stdexcept>

// members: layers that run as graphs. row_pos, row_slots: the queries that vote and their rows of the ring.
void restkv_cache::vote_as_graphs(const std::vector<uint32_t> & members, uint32_t n_cells,
                                  const std::vector<int32_t> & row_pos, const std::vector<int32_t> & row_slots) {
    std::vector<int32_t> n_visible;
    for (const int32_t pos : row_pos) {
        n_visible.push_back((int32_t) n_table + pos - pos_exact + 1);
    }
    if (n_cells - (uint32_t) n_visible[0] >= ring_pos.size()) {
        throw std::runtime_error("queries that vote lie further apart than the ring is long");
    }
    restkv_graph_cells cells;
    cells.n_cells = cells.n_past = n_cells;
    cells.n_rows                 = (uint32_t) row_slots.size();
    cells.row_slots              = row_slots.data();
    cells.n_visible              = n_visible.data();

    for (const uint32_t l : members) {
        layer_state &            layer   = layers[l];
        const std::vector<float> sinks   = sinks_of(layer);
        restkv_graph_layer       shape   = graph_layer(layer);
        shape.sinks                      = sinks.empty() ? nullptr : sinks.data();
        const restkv_graph_scores scores = layer.graph->score(shape, cells);
        const uint32_t            group  = layer.n_head / layer.n_head_kv;
        for (uint32_t h = 0; h < layer.n_head; ++h) {
            float *       sums = layer.sums.data() + (size_t) (h / group) * params.capacity;
            const float * abar = scores.abar + (size_t) h * scores.n_cols;
            for (uint32_t j = 0; j < n_cells; ++j) {
                sums[j] += abar[j] / group;  // the KV head's mean over its query heads
            }
        }
    }
}
