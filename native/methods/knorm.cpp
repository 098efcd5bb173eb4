// L2-norm (Devoto et al., 2024): keys of small length are kept; they tend to draw attention. The paper leaves layers 0
// and 1 whole; here every layer has the same number of cells, so they are evicted like the others.

#include "methods/methods.h"

#include <algorithm>
#include <cmath>

static void score(const restkv_view & view, const restkv_params &, uint32_t, restkv_scratch & scratch) {
    const int64_t       t_start = ggml_time_us();
    std::vector<double> squared(scratch.panel_k);
    for (uint32_t from = 0; from < view.n_past;) {
        const uint32_t n = std::min(restkv_load_keys(view, scratch, from), view.n_past - from);
        std::fill(squared.begin(), squared.begin() + n, 0.0);
        for (uint32_t k = 0; k < view.d_k; ++k) {
            const float * keys = scratch.keys.data() + (size_t) k * scratch.panel_k;
            for (uint32_t j = 0; j < n; ++j) {
                squared[j] += (double) keys[j] * keys[j];
            }
        }
        for (uint32_t h = 0; h < view.group; ++h) {
            float * raw = scratch.raw.data() + (size_t) h * scratch.n_pad + from;
            for (uint32_t j = 0; j < n; ++j) {
                raw[j] = (float) -std::sqrt(squared[j]);
            }
        }
        from += n;
    }
    scratch.times.score += ggml_time_us() - t_start;
}

extern const restkv_method restkv_method_knorm = {
    "knorm",
    "cells whose key is short",
    /*uses_queries =*/false,
    /*uses_wo =*/false,
    /*pools =*/false,
    score,
    restkv_graph_is<RESTKV_GRAPH_LENGTHS>,
};
