// What the host makes of a graph's output: raw scores and the drift, in doubles where digits would be lost.

#include "graph/graph.h"

#include <algorithm>
#include <cmath>

restkv_graph_kind restkv_graph_kind_of(const restkv_params & params) {
    const restkv_method * method = restkv_find_method(params.method);
    return method ? method->graph(params) : RESTKV_GRAPH_NONE;
}

std::vector<float> restkv_graph_weights(const restkv_params & params, uint32_t n_rows) {
    const restkv_method * method = restkv_find_method(params.method);
    return method && method->row_weights ? method->row_weights(params, n_rows) : std::vector<float>();
}

bool restkv_graph_takes_largest(const restkv_params & params) {
    const restkv_method * method = restkv_find_method(params.method);
    return method && method->row_weights && method->row_weights(params, 1).empty();
}

static void score_keys(const restkv_graph_scores & scores, const restkv_graph_layer & layer, uint32_t hk,
                       uint32_t first, float * raw) {
    const uint32_t n  = scores.n_past - first;
    const float *  l2 = scores.lengths2 + (size_t) hk * scores.n_past + first;
    if (!scores.dots) {
        for (uint32_t j = 0; j < n; ++j) {
            raw[j] = (float) -std::sqrt((double) l2[j]);
        }
        return;
    }
    const float * mean    = scores.mean + (size_t) hk * layer.d_k;
    const float * dots    = scores.dots + (size_t) hk * scores.n_past + first;
    double        squared = 0.0;
    for (uint32_t k = 0; k < layer.d_k; ++k) {
        squared += (double) mean[k] * mean[k];
    }
    const double scale = 1.0 / std::max(std::sqrt(squared), RESTKV_KEY_LENGTH_MIN);
    for (uint32_t j = 0; j < n; ++j) {
        raw[j] = (float) -(dots[j] * scale / std::max(std::sqrt((double) l2[j]), RESTKV_KEY_LENGTH_MIN));
    }
}

static void score_before(const restkv_graph_scores & scores, const restkv_params & params,
                         const restkv_graph_layer & layer, uint32_t h, const float * wo, uint32_t first, float * raw) {
    const uint32_t           d       = layer.d_v;
    const std::vector<float> weights = restkv_row_weights(params, scores.n_rows);
    restkv_params            plain   = params;
    plain.tau                        = 1.0f;  // has no meaning here
    std::copy_n(scores.raw + (size_t) h * scores.n_past + first, scores.n_past - first, raw);

    std::vector<double> others(d), x(d);
    std::vector<float>  v(d);
    for (uint32_t i = 0; i < scores.n_rows; ++i) {
        const size_t   row  = (size_t) h * scores.n_rows + i;
        const float *  top  = scores.tops + row * RESTKV_GRAPH_TOP;
        const uint32_t cell = (uint32_t) std::lround(top[0]);
        if (!(top[1] > 0.0f) || cell < first || cell >= scores.n_past) {
            continue;
        }
        for (uint32_t k = 0; k < d; ++k) {
            others[k] = scores.others[row * d + k];
            v[k]      = scores.dominant[row * d + k] / top[1];
        }
        raw[cell - first] += weights[i] / (params.use_norm ? top[3] : 1.0f) *
                             restkv_score_top(top[1], top[2], others.data(), v.data(), wo, d, plain, x);
    }
}

void restkv_graph_raw(const restkv_graph_scores & scores, const restkv_params & params,
                      const restkv_graph_layer & layer, uint32_t h, const float * wo, uint32_t first, float * raw) {
    const uint32_t hk  = h / (layer.n_head / layer.n_head_kv);
    const uint32_t d_v = layer.d_v;
    if (scores.raw) {
        score_before(scores, params, layer, h, wo, first, raw);
        return;
    }
    if (!scores.abar) {
        score_keys(scores, layer, hk, first, raw);
        return;
    }
    const float *  abar = scores.abar + (size_t) h * scores.n_cols + first;
    const uint32_t n    = scores.n_past - first;
    if (!scores.distance2) {
        std::copy(abar, abar + n, raw);
        if (restkv_graph_takes_largest(params)) {
            restkv_raise_to_mean(raw, n);
        }
        for (uint32_t j = 0; scores.lengths2 && j < n; ++j) {
            raw[j] = (float) (raw[j] * std::sqrt((double) scores.lengths2[(size_t) hk * scores.n_past + first + j]));
        }
        return;
    }
    const float * d2 = scores.distance2 + (size_t) h * scores.n_past + first;
    for (uint32_t j = 0; j < n; ++j) {
        raw[j] = abar[j] / (1.0f - abar[j]) * restkv_distance_power(std::sqrt(d2[j]), params);
    }

    const uint32_t top = (uint32_t) (std::max_element(abar, abar + n) - abar);
    if (!(abar[top] > RESTKV_GRAPH_DOMINANT)) {
        return;
    }
    // 1 - a from the other columns: those of the window and the sink count
    double rest = 0.0;
    for (uint32_t j = 0; j < scores.n_cols - first; ++j) {
        rest += j == top ? 0.0 : abar[j];
    }
    std::vector<double> others(d_v), x(d_v);
    std::vector<float>  v(d_v);
    for (uint32_t k = 0; k < d_v; ++k) {
        others[k] = scores.others[(size_t) h * d_v + k];
        v[k]      = scores.dominant[(size_t) h * d_v + k] / abar[top];
    }
    raw[top] = restkv_score_top(abar[top], rest, others.data(), v.data(), wo, d_v, params, x);
}

// A row gives, for a threshold just above the top-th largest weight and one just below it, the number of cells
// above and the sum of their positions. Of the cells between the two thresholds a share counts.
double restkv_graph_drift(const restkv_graph_scores & scores, uint32_t h, uint32_t top) {
    const uint32_t n_half   = scores.n_rows / 2;
    double         means[2] = { 0.0, 0.0 };
    for (uint32_t i = 0; i < scores.n_rows; ++i) {
        const float * row     = scores.drift + ((size_t) h * scores.n_rows + i) * 4;
        const double  n_above = row[0], sum_above = row[1];
        const double  n_between = row[2] - n_above;
        const double  share     = n_between > 0.0 ? std::clamp((top - n_above) / n_between, 0.0, 1.0) : 0.0;
        const double  n         = n_above + share * n_between;
        means[i < n_half ? 0 : 1] += n > 0.0 ? (sum_above + share * (row[3] - sum_above)) / n : 0.0;
    }
    return scores.n_rows > 1 ? means[0] / n_half - means[1] / (scores.n_rows - n_half) : 0.0;
}
