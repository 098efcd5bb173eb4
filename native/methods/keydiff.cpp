// KeyDiff (Park et al., 2025): keys that point away from the mean of the unit keys are kept, so that the cache stays
// diverse. It looks at no query.

#include "methods/methods.h"

#include <algorithm>
#include <cmath>

namespace {

// 1 / length of the n keys of the loaded panel
void inverse_lengths(const restkv_view & view, const restkv_scratch & scratch, uint32_t n, std::vector<double> & out) {
    std::fill(out.begin(), out.begin() + n, 0.0);
    for (uint32_t k = 0; k < view.d_k; ++k) {
        const float * keys = scratch.keys.data() + (size_t) k * scratch.panel_k;
        for (uint32_t j = 0; j < n; ++j) {
            out[j] += (double) keys[j] * keys[j];
        }
    }
    for (uint32_t j = 0; j < n; ++j) {
        out[j] = 1.0 / std::max(std::sqrt(out[j]), RESTKV_KEY_LENGTH_MIN);
    }
}

void score(const restkv_view & view, const restkv_params & params, uint32_t, restkv_scratch & scratch) {
    const int64_t  t_start = ggml_time_us();
    // without a guide behind the window, which is about to go
    const uint32_t n_text  = std::min(view.n_past + params.window, view.n_cells);

    std::vector<double> inverse(scratch.panel_k);
    std::vector<double> mean(view.d_k, 0.0);
    for (uint32_t from = 0; from < n_text;) {
        const uint32_t n = std::min(restkv_load_keys(view, scratch, from), n_text - from);
        inverse_lengths(view, scratch, n, inverse);
        for (uint32_t k = 0; k < view.d_k; ++k) {
            const float * keys = scratch.keys.data() + (size_t) k * scratch.panel_k;
            for (uint32_t j = 0; j < n; ++j) {
                mean[k] += keys[j] * inverse[j];
            }
        }
        from += n;
    }
    double squared = 0.0;
    for (const double x : mean) {
        squared += x * x;
    }
    const double scale = 1.0 / std::max(std::sqrt(squared), RESTKV_KEY_LENGTH_MIN);

    std::vector<double> cosine(scratch.panel_k);
    for (uint32_t from = 0; from < view.n_past;) {
        const uint32_t n = std::min(restkv_load_keys(view, scratch, from), view.n_past - from);
        inverse_lengths(view, scratch, n, inverse);
        std::fill(cosine.begin(), cosine.begin() + n, 0.0);
        for (uint32_t k = 0; k < view.d_k; ++k) {
            const float * keys = scratch.keys.data() + (size_t) k * scratch.panel_k;
            for (uint32_t j = 0; j < n; ++j) {
                cosine[j] += keys[j] * mean[k];
            }
        }
        for (uint32_t h = 0; h < view.group; ++h) {
            float * raw = scratch.raw.data() + (size_t) h * scratch.n_pad + from;
            for (uint32_t j = 0; j < n; ++j) {
                raw[j] = (float) -(cosine[j] * inverse[j] * scale);
            }
        }
        from += n;
    }
    scratch.times.score += ggml_time_us() - t_start;
}

}  // namespace

extern const restkv_method restkv_method_keydiff = {
    "keydiff",
    "cells whose key points away from the mean key",
    /*uses_queries =*/false,
    /*uses_wo =*/false,
    /*pools =*/false,
    score,
    restkv_graph_is<RESTKV_GRAPH_ANGLES>,
};
