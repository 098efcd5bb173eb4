// What the host makes of a graph's output: raw scores and the drift, in doubles where digits would be lost.

#include "graph.h"
#include "methods/methods.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// Rows become one by weights alone, which the graph takes as they are; a single row is left to the host.
static bool maps_rows(const restkv_params & params) {
    return params.rows != RESTKV_ROWS_LAST && params.rows != RESTKV_ROWS_SUM;
}

restkv_graph_kind restkv_graph_kind_of(const restkv_params & params) {
    for (const char * name : { "streamingllm", "lacache", "fifo", "random" }) {
        if (strcmp(params.method, name) == 0) {
            return RESTKV_GRAPH_MOVES;
        }
    }
    if (strcmp(params.method, "snapkv") == 0) {
        return RESTKV_GRAPH_ATTENTION;
    }
    if (strcmp(params.method, "restkv") == 0 && params.metric_mode == RESTKV_METRIC_AFTER &&
        params.indicator == RESTKV_INDICATOR_RECONSTRUCTION && maps_rows(params)) {
        return RESTKV_GRAPH_OUTPUT;
    }
    return RESTKV_GRAPH_NONE;
}

void restkv_graph_raw(const restkv_graph_scores & scores, const restkv_params & params, uint32_t h, uint32_t d_v,
                      const float * wo, float * raw) {
    const float *  abar = scores.abar + (size_t) h * scores.n_cols;
    const uint32_t n    = scores.n_past;
    if (!scores.distance2) {
        std::copy(abar, abar + n, raw);
        return;
    }
    const float * d2 = scores.distance2 + (size_t) h * n;
    for (uint32_t j = 0; j < n; ++j) {
        raw[j] = abar[j] / (1.0f - abar[j]) * restkv_distance_power(std::sqrt(d2[j]), params);
    }

    const uint32_t top = (uint32_t) (std::max_element(abar, abar + n) - abar);
    if (!(abar[top] > RESTKV_GRAPH_DOMINANT)) {
        return;
    }
    // 1 - a from the other columns: those of the window and the sink count
    double rest = 0.0;
    for (uint32_t j = 0; j < scores.n_cols; ++j) {
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

// A row gives, for a threshold just above the drift_top-th largest weight and one just below it, the number of cells
// above and the sum of their positions. Of the cells between the two thresholds a share counts.
double restkv_graph_drift(const restkv_graph_scores & scores, uint32_t h) {
    const uint32_t n_half   = scores.n_rows / 2;
    double         means[2] = { 0.0, 0.0 };
    for (uint32_t i = 0; i < scores.n_rows; ++i) {
        const float * row     = scores.drift + ((size_t) h * scores.n_rows + i) * 4;
        const double  n_above = row[0], sum_above = row[1];
        const double  n_between = row[2] - n_above;
        const double  share     = n_between > 0.0 ? std::clamp((scores.n_drift - n_above) / n_between, 0.0, 1.0) : 0.0;
        const double  n         = n_above + share * n_between;
        means[i < n_half ? 0 : 1] += n > 0.0 ? (sum_above + share * (row[3] - sum_above)) / n : 0.0;
    }
    return scores.n_rows > 1 ? means[0] / n_half - means[1] / (scores.n_rows - n_half) : 0.0;
}
