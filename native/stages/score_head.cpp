// attend, score, smooth and select for one KV head.

#include "methods/methods.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

// One score per cell for the group, into s.row.
static void reduce_group(const restkv_view & view, const restkv_params & params, restkv_scratch & s) {
    float * y = s.row.data();
    std::copy(s.smoothed.begin(), s.smoothed.begin() + view.n_past, y);
    for (uint32_t h = 1; h < view.group; ++h) {
        const float * other = s.smoothed.data() + (size_t) h * s.n_pad;
        for (uint32_t j = 0; j < view.n_past; ++j) {
            y[j] = params.reduce == RESTKV_REDUCE_MAX ? std::max(y[j], other[j]) : y[j] + other[j];
        }
    }
    if (params.reduce == RESTKV_REDUCE_MEAN) {
        for (uint32_t j = 0; j < view.n_past; ++j) {
            y[j] = std::min(y[j], FLT_MAX) / view.group;
        }
    }
}

void restkv_score_head(const restkv_view & view, const restkv_params & params, uint32_t drift_top, uint32_t n_keep,
                       restkv_scratch & s) {
    s.keys_of   = nullptr;
    s.values_of = nullptr;
    restkv_find_method(params.method)->score(view, params, drift_top, s);
    restkv_choose(view, params, drift_top > 0, n_keep, s);
}

void restkv_choose(const restkv_view & view, const restkv_params & params, bool drifts, uint32_t n_keep,
                   restkv_scratch & s) {
    const restkv_method * method = restkv_find_method(params.method);

    // a score that is not a number must not decide anything but its own cell
    for (uint32_t h = 0; h < view.group; ++h) {
        float * raw = s.raw.data() + (size_t) h * s.n_pad;
        for (uint32_t j = 0; j < view.n_past; ++j) {
            raw[j] = std::isfinite(raw[j]) ? raw[j] : FLT_MAX;
        }
    }

    int64_t t_start = ggml_time_us();
    for (uint32_t h = 0; h < view.group; ++h) {
        s.kernels[h] = (int32_t) params.kernel;
        s.shifts[h]  = 0;
        if (drifts) {
            restkv_adapt(s.drift[h], params.scale, params.kernel, &s.kernels[h], &s.shifts[h]);
        }
        const float * raw = s.raw.data() + (size_t) h * s.n_pad;
        float *       y   = s.smoothed.data() + (size_t) h * s.n_pad;
        restkv_smooth(raw, view.pos, view.n_past, method->pools ? params.pooling : (int32_t) RESTKV_POOLING_NONE,
                      s.kernels[h], s.shifts[h], y);
        for (uint32_t j = 0; j < view.n_past; ++j) {
            y[j] = std::min(y[j], FLT_MAX);
        }
    }
    s.times.smooth += ggml_time_us() - t_start;

    if (params.reduce != RESTKV_REDUCE_NONE) {
        t_start = ggml_time_us();
        reduce_group(view, params, s);
        restkv_select_top(s.row.data(), view.n_past, n_keep, s.kept.data());
        s.times.select += ggml_time_us() - t_start;
    }
}
