// Builds the graph of attend and score for some KV heads of a layer. Shapes below are ggml's, fastest axis first:
// cells or d, rows or cells, query heads of the group (g), KV heads of the tile (T).

#pragma once

#include "graph.h"

// KV heads [head, head + n_heads), rows of the window n_rows at a time.
struct restkv_graph::tile {
    uint32_t head;
    uint32_t n_heads;
    uint32_t n_rows;
};

class restkv_graph_builder {
public:
    restkv_graph_builder(const restkv_graph & graph, ggml_context * ctx, const restkv_graph_layer & layer,
                         const restkv_graph_cells & cells, const restkv_graph::lane & lane,
                         const restkv_graph::tile & tile);

    static constexpr size_t NODES_MAX = 16384;

    // At least as many as a graph of this size has tensors.
    static size_t nodes(const restkv_graph & graph, const restkv_graph_layer & layer, const restkv_graph_cells & cells,
                        const restkv_graph::tile & tile);

    ggml_cgraph * gf;

private:
    ggml_tensor * queries(uint32_t from, uint32_t n) const;                                   // [d_k, n g, T]
    ggml_tensor * rows_of(ggml_tensor * cache, uint32_t d, uint32_t from, uint32_t n) const;  // F32 [d, n, T]
    ggml_tensor * product(ggml_tensor * a, ggml_tensor * b) const;
    ggml_tensor * attention(uint32_t from, uint32_t n) const;  // [n_cols, n, g, T], rows from ..
    ggml_tensor * sum_rows_of_window(ggml_tensor * a) const;   // [n_cols, 1, g, T]
    ggml_tensor * drift(ggml_tensor * a) const;                // [4, rows, g, T]
    void          distances(ggml_tensor * abar);
    void          give(ggml_tensor * t, size_t at, size_t stride);

    const restkv_graph &       graph;
    ggml_context * const       ctx;
    const restkv_graph_layer & layer;
    const restkv_graph_cells & cells;
    const restkv_graph::lane & lane;
    const restkv_graph::tile   tile;
    const restkv_graph::layout at;
    const uint32_t             g;
    const uint32_t             T;
};
