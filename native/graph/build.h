// Builds the graph of attend and score for some KV heads of a layer. Shapes below are ggml's, fastest axis first:
// cells or d, rows or cells, query heads of the group (g), KV heads of the tile (T).

#pragma once

#include "graph/graph.h"
#include "graph/product.h"

#include <algorithm>

// KV heads [head, head + n_heads), rows of the window n_rows at a time.
struct restkv_graph::tile {
    uint32_t head;
    uint32_t n_heads;
    uint32_t n_rows;
};

// Cells per pass, of n, when each takes `width` floats.
inline uint32_t restkv_graph_panel(size_t tile_floats, size_t width, uint32_t n) {
    return (uint32_t) std::clamp<size_t>(tile_floats / width, 1, std::max(n, 1u));
}

class restkv_graph_builder {
public:
    restkv_graph_builder(const restkv_graph & graph, ggml_context * ctx, const restkv_graph_layer & layer,
                         const restkv_graph_cells & cells, const restkv_graph::buffer_set & buffers,
                         const restkv_graph::tile & tile);

    static constexpr size_t NODES_MAX = 16384;

    // A sum of weights that is divided by is larger: F16 ends at 6e-8, and all weights together may be below.
    static constexpr float LEAST = 1e-37f;

    // At least as many as a graph of this size has tensors.
    static size_t nodes(const restkv_graph & graph, const restkv_graph_layer & layer, const restkv_graph_cells & cells,
                        const restkv_graph::tile & tile);

    ggml_cgraph * gf;

private:
    using factor = restkv_factor;

    ggml_tensor * queries(uint32_t from, uint32_t n) const;                                   // [d_k, n g, T]
    ggml_tensor * rows_of(ggml_tensor * cache, uint32_t d, uint32_t from, uint32_t n) const;  // F32 [d, n, T]
    factor        factor_of(ggml_tensor * x, ggml_type from) const;
    ggml_tensor * product(const factor & a, const factor & b) const;
    ggml_tensor * attention(uint32_t from, uint32_t n) const;     // [n_cols, n, g, T], rows from ..
    ggml_tensor * join(ggml_tensor * a, ggml_tensor * b) const;   // their sum, or the larger of the two
    ggml_tensor * join_rows_of_window(ggml_tensor * a) const;     // [n_cols, 1, g, T]
    ggml_tensor * drift(ggml_tensor * a) const;                   // [4, rows, g, T]
    ggml_tensor * hidden_cells(uint32_t from, uint32_t n) const;  // [n, 1, 1, T]
    ggml_tensor * dominant(ggml_tensor * w) const;
    factor        factors() const;
    ggml_tensor * weighted_values(ggml_tensor * w, uint32_t n_cells);
    void          attend();
    void          distances(ggml_tensor * abar);
    void          store(ggml_tensor * t, size_t at, size_t stride);

    // before.cpp
    void before(ggml_tensor * a, uint32_t from, std::vector<ggml_tensor *> & sums);

    // keys.cpp
    void lengths(ggml_tensor * cache, uint32_t d);
    void angles();
    void give_kv(ggml_tensor * t, size_t at, size_t stride);

    const restkv_graph &             graph;
    ggml_context * const             ctx;
    const restkv_graph_layer &       layer;
    const restkv_graph_cells &       cells;
    const restkv_graph::buffer_set & buffers;
    const restkv_graph::tile         tile;
    const restkv_graph::layout       at;
    const uint32_t                   g;
    const uint32_t                   T;
    ggml_tensor *                    hidden = nullptr;  // F32 [n_cells, T] of layer.hidden, or null
};
