// One layer's rows in host memory, and the view of one KV head that the stages on the CPU work on.

#pragma once

#include "cache/core.h"
#include "stages/stages.h"

struct restkv_host_rows {
    uint8_t *          k = nullptr;     // the cache itself, or a copy
    uint8_t *          v = nullptr;
    std::vector<float> ring;            // [n_ring + 1][n_head * d_k]
    std::vector<float> sinks;           // [n_head], or empty
    float *            sums = nullptr;  // restkv_held::sums, or null

    void read_ring(const restkv_layer & layer) {
        ring.resize(ggml_nelements(layer.ring));
        ggml_backend_tensor_get(layer.ring, ring.data(), 0, ggml_nbytes(layer.ring));
    }
};

// The queries of a window, for KV head h of layer l, into scratch.queries: scaled, [group][rows][d_k].
const float * restkv_read_queries(const restkv_layer & layer, uint32_t h, const restkv_host_rows & rows,
                                  const restkv_sequence::window & window, restkv_scratch & scratch);

// KV head h of layer l with its queries in scratch.queries; the caller sets n_cells, n_past and pos.
restkv_view restkv_view_of(const restkv_core & core, uint32_t l, uint32_t h, const restkv_host_rows & rows,
                           const restkv_sequence::window & window, restkv_scratch & scratch);
