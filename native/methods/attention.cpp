// Attention of the window as a score: what SnapKV, TOVA and H2O add up, and two indicators of ReST-KV's ablation.

#include "methods/methods.h"

#include <algorithm>
#include <cmath>

namespace {

class weigh_rows : public restkv_row_sink {
public:
    weigh_rows(const restkv_view & view, const std::vector<float> & weights, restkv_scratch & scratch) :
        view(view),
        weights(weights),
        scratch(scratch) {}

    void row(const restkv_row & r) override {
        float * raw = scratch.raw.data() + (size_t) r.head * scratch.n_pad;
        restkv_cpu_kernels()->axpy(weights[r.index], r.a, std::min(r.n_visible, view.n_past), raw);
    }

private:
    const restkv_view &        view;
    const std::vector<float> & weights;
    restkv_scratch &           scratch;
};

// raw = the largest of the rows
class largest_of_rows : public restkv_row_sink {
public:
    largest_of_rows(const restkv_view & view, restkv_scratch & scratch) : view(view), scratch(scratch) {}

    void row(const restkv_row & r) override {
        float *        raw = scratch.raw.data() + (size_t) r.head * scratch.n_pad;
        const uint32_t n   = std::min(r.n_visible, view.n_past);
        for (uint32_t j = 0; j < n; ++j) {
            raw[j] = std::max(raw[j], r.a[j]);
        }
    }

private:
    const restkv_view & view;
    restkv_scratch &    scratch;
};

// raw[h][j] *= ||v_j||
void times_value_norm(const restkv_view & view, restkv_scratch & scratch) {
    std::vector<double> squared(scratch.panel_v);
    for (uint32_t from = 0; from < view.n_past;) {
        const uint32_t n = std::min(restkv_load_values(view, scratch, from), view.n_past - from);
        std::fill(squared.begin(), squared.begin() + n, 0.0);
        for (uint32_t k = 0; k < view.d_v; ++k) {
            const float * values = scratch.values.data() + (size_t) k * scratch.panel_v;
            for (uint32_t j = 0; j < n; ++j) {
                squared[j] += (double) values[j] * values[j];
            }
        }
        for (uint32_t h = 0; h < view.group; ++h) {
            float * raw = scratch.raw.data() + (size_t) h * scratch.n_pad + from;
            for (uint32_t j = 0; j < n; ++j) {
                raw[j] = (float) (raw[j] * std::sqrt(squared[j]));
            }
        }
        from += n;
    }
}

}  // namespace

void restkv_sum_attention(const restkv_view & view, const std::vector<float> & weights, uint32_t drift_top,
                          restkv_scratch & scratch) {
    std::fill(scratch.raw.begin(), scratch.raw.end(), 0.0f);
    weigh_rows sink(view, weights, scratch);
    restkv_attend(view, scratch, drift_top, sink);
}

// A cell that no row of the window asks for may be asked for later: it counts as much as the others do on average, so
// that among such cells the values decide.
void restkv_raise_to_mean(float * raw, uint32_t n) {
    double sum = 0.0;
    for (uint32_t j = 0; j < n; ++j) {
        sum += raw[j];
    }
    const float mean = (float) (sum / std::max(n, 1u));
    for (uint32_t j = 0; j < n; ++j) {
        raw[j] = std::max(raw[j], mean);
    }
}

void restkv_score_attention(const restkv_view & view, const restkv_params & params, uint32_t drift_top,
                            restkv_scratch & scratch) {
    if (params.rows == RESTKV_ROWS_MAX) {
        std::fill(scratch.raw.begin(), scratch.raw.end(), 0.0f);
        largest_of_rows sink(view, scratch);
        restkv_attend(view, scratch, drift_top, sink);
        for (uint32_t h = 0; h < view.group; ++h) {
            restkv_raise_to_mean(scratch.raw.data() + (size_t) h * scratch.n_pad, view.n_past);
        }
    } else {
        restkv_sum_attention(view, restkv_row_weights(params, view.n_rows), drift_top, scratch);
    }
    if (params.indicator == RESTKV_INDICATOR_ATTENTION_V) {
        const int64_t t_start = ggml_time_us();
        times_value_norm(view, scratch);
        scratch.times.score += ggml_time_us() - t_start;
    }
}
