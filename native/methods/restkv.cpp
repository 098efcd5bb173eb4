// ReST-KV (ICLR 2026): how much the layer's output changes when a cell goes. Removing cell j alone and letting the
// softmax renormalise changes the head's output o by a/(1-a) (v_j - o); the score is the norm of that, through W_o.

#include "methods/methods.h"

#include <algorithm>
#include <cmath>
#include <numeric>

float restkv_distance_power(double distance, const restkv_params & params) {
    return (float) (params.use_wo && params.tau != 1.0f ? std::pow(distance, (double) params.tau) : distance);
}

// The score of a cell that takes most of the attention: o - v_j would cancel, and a / (1 - a) overflow. With U the
// weighted sum of all other values, o - v_j = rest (U / rest - v_j), which is exact for any rest.
float restkv_score_top(double a, double rest, const double * others, const float * v, const float * wo, uint32_t d,
                       const restkv_params & params, std::vector<double> & x) {
    constexpr double ODDS_MAX = 1e6;
    for (uint32_t k = 0; k < d; ++k) {
        x[k] = (rest > 0.0 ? others[k] / rest : 0.0) - v[k];
    }
    double squared = 0.0;
    for (uint32_t r = 0; r < d; ++r) {
        double y = wo ? 0.0 : x[r];
        for (uint32_t k = r; wo && k < d; ++k) {
            y += wo[(size_t) r * d + k] * x[k];
        }
        squared += y * y;
    }
    const double least = std::max(rest, a / ODDS_MAX);  // keeps the odds finite; the product stays
    return (float) (a / least * restkv_distance_power(least * std::sqrt(squared), params));
}

namespace {

// Near 1 the float has no digits left, and near 0, under a sink that takes nearly all, 1 - rest has none.
double weight_of_top(const restkv_row & r) {
    return r.rest < 0.5 ? 1.0 - r.rest : r.a[r.top];
}

// "after": aggregate the rows first, then one distance per cell.
//
// Where a cell takes most of a row, 1 - a must come from the sum of the other exponentials. Those rows are kept aside,
// per cell: at most one cell per row.
class after_sink : public restkv_row_sink {
public:
    after_sink(const restkv_view & view, const std::vector<float> & weights, restkv_scratch & scratch) :
        tops(view.group),
        view(view),
        weights(weights),
        scratch(scratch) {}

    struct top_cell {
        uint32_t           cell;
        double             weight;  // of the rows where it is on top
        double             a;       // sum of e_i a_i over those rows, later over all
        double             rest;    // sum of e_i (1 - a_i), likewise
        std::vector<float> v;       // its value
    };

    void row(const restkv_row & r) override {
        float *        abar = scratch.raw.data() + (size_t) r.head * scratch.n_pad;
        const float    e    = weights[r.index];
        const uint32_t n    = std::min(r.n_visible, view.n_past);
        if (r.top < n) {
            top_cell & top = find(r.head, r.top);
            top.weight += e;
            top.a += e * weight_of_top(r);
            top.rest += e * r.rest;
            r.a[r.top] = 0.0f;
        }
        restkv_cpu_kernels()->axpy(e, r.a, n, abar);
    }

    // After the last row: complete the top cells and take them out of abar.
    void finish() {
        // of the same floats, so that a cell on top of every row leaves exactly nothing
        const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (uint32_t h = 0; h < view.group; ++h) {
            float * abar = scratch.raw.data() + (size_t) h * scratch.n_pad;
            for (top_cell & top : tops[h]) {
                const double others = abar[top.cell];
                top.rest += std::max(0.0, total - top.weight) - others;
                top.a += others;
                abar[top.cell] = 0.0f;
            }
        }
    }

    std::vector<std::vector<top_cell>> tops;

private:
    top_cell & find(uint32_t head, uint32_t cell) {
        for (top_cell & top : tops[head]) {
            if (top.cell == cell) {
                return top;
            }
        }
        tops[head].push_back({ cell, 0.0, 0.0, 0.0, std::vector<float>(view.d_v) });
        return tops[head].back();
    }

    const restkv_view &        view;
    const std::vector<float> & weights;
    restkv_scratch &           scratch;
};

void score_after(const restkv_view & view, const restkv_params & params, uint32_t drift_top, restkv_scratch & scratch) {
    const restkv_kernels *   kernels = restkv_cpu_kernels();
    const std::vector<float> weights = restkv_row_weights(params, view.n_rows);

    std::fill(scratch.raw.begin(), scratch.raw.end(), 0.0f);
    after_sink sink(view, weights, scratch);
    restkv_attend(view, scratch, drift_top, sink);
    sink.finish();

    const int64_t  t_start = ggml_time_us();
    const uint32_t L       = view.n_past;
    const uint32_t d       = view.d_v;

    // obar without the top cells, whose values are picked up on the way
    std::vector<double> obar((size_t) view.group * d, 0.0);
    for (uint32_t from = 0; from < L;) {
        const uint32_t n     = std::min(restkv_load_values(view, scratch, from), L - from);
        const float *  panel = scratch.values.data();
        for (uint32_t h = 0; h < view.group; ++h) {
            const float * abar = scratch.raw.data() + (size_t) h * scratch.n_pad + from;
            for (uint32_t k = 0; k < d; ++k) {
                obar[h * d + k] += kernels->dot(abar, panel + (size_t) k * scratch.panel_v, n);
            }
            for (after_sink::top_cell & top : sink.tops[h]) {
                for (uint32_t k = 0; top.cell >= from && top.cell < from + n && k < d; ++k) {
                    top.v[k] = panel[(size_t) k * scratch.panel_v + top.cell - from];
                }
            }
        }
        from += n;
    }

    const std::vector<double> plain = obar;  // without any top cell
    std::vector<float>        o((size_t) view.group * d);
    for (uint32_t h = 0; h < view.group; ++h) {
        for (uint32_t k = 0; k < d; ++k) {
            for (const after_sink::top_cell & top : sink.tops[h]) {
                obar[h * d + k] += top.a * top.v[k];
            }
            o[h * d + k] = (float) obar[h * d + k];
        }
    }

    for (uint32_t from = 0; from < L;) {
        const uint32_t n = std::min(restkv_load_values(view, scratch, from), L - from);
        for (uint32_t h = 0; h < view.group; ++h) {
            float *       raw = scratch.raw.data() + (size_t) h * scratch.n_pad + from;
            const float * wo  = view.wo ? view.wo + (size_t) h * d * d : nullptr;
            float *       d2  = scratch.row.data();
            kernels->distance2(wo, o.data() + (size_t) h * d, d, scratch.values.data(), scratch.panel_v, n, d2);
            for (uint32_t j = 0; j < n; ++j) {
                const float distance = std::sqrt(d2[j]);
                raw[j]               = raw[j] / (1.0f - raw[j]) *
                                       (params.tau == 1.0f ? distance : restkv_distance_power(distance, params));
            }
        }
        from += n;
    }

    std::vector<double> others(d), x(d);
    for (uint32_t h = 0; h < view.group; ++h) {
        float *       raw = scratch.raw.data() + (size_t) h * scratch.n_pad;
        const float * wo  = view.wo ? view.wo + (size_t) h * d * d : nullptr;
        for (const after_sink::top_cell & top : sink.tops[h]) {
            // summed anew: taken out of obar, what is left would cancel
            for (uint32_t k = 0; k < d; ++k) {
                others[k] = plain[h * d + k];
                for (const after_sink::top_cell & other : sink.tops[h]) {
                    others[k] += other.cell == top.cell ? 0.0 : other.a * other.v[k];
                }
            }
            raw[top.cell] = restkv_score_top(top.a, top.rest, others.data(), top.v.data(), wo, d, params, x);
        }
    }

    scratch.times.score += ggml_time_us() - t_start;
}

// "before": one distance per query and cell, then the rows are aggregated.
class before_sink : public restkv_row_sink {
public:
    before_sink(const restkv_view & view, const restkv_params & params, const std::vector<float> & weights,
                restkv_scratch & scratch) :
        view(view),
        params(params),
        weights(weights),
        scratch(scratch),
        others(view.d_v),
        x(view.d_v),
        o(view.d_v),
        v_top(view.d_v) {
        this->params.tau = 1.0f;  // has no meaning here
    }

    void row(const restkv_row & r) override {
        const int64_t          t_start = ggml_time_us();
        const restkv_kernels * kernels = restkv_cpu_kernels();
        const uint32_t         d       = view.d_v;

        const double a_top = weight_of_top(r);
        r.a[r.top]         = 0.0f;
        std::fill(others.begin(), others.end(), 0.0);
        for (uint32_t from = 0; from < r.n_visible;) {
            const uint32_t n = std::min(restkv_load_values(view, scratch, from), r.n_visible - from);
            for (uint32_t k = 0; k < d; ++k) {
                const float * values = scratch.values.data() + (size_t) k * scratch.panel_v;
                others[k] += kernels->dot(r.a + from, values, n);
                if (r.top >= from && r.top < from + n) {
                    v_top[k] = values[r.top - from];
                }
            }
            from += n;
        }
        for (uint32_t k = 0; k < d; ++k) {
            o[k] = (float) (others[k] + a_top * v_top[k]);
        }

        const float *  wo    = view.wo ? view.wo + (size_t) r.head * d * d : nullptr;
        const float    e     = weights[r.index] / (params.use_norm ? norm_of_output(wo) : 1.0f);
        const uint32_t n_all = std::min(r.n_visible, view.n_past);
        float *        raw   = scratch.raw.data() + (size_t) r.head * scratch.n_pad;
        for (uint32_t from = 0; from < n_all;) {
            const uint32_t n  = std::min(restkv_load_values(view, scratch, from), n_all - from);
            float *        d2 = scratch.row.data();
            kernels->distance2(wo, o.data(), d, scratch.values.data(), scratch.panel_v, n, d2);
            for (uint32_t j = 0; j < n; ++j) {
                const float a = r.a[from + j];
                raw[from + j] += e * (a / (1.0f - a)) * std::sqrt(d2[j]);
            }
            from += n;
        }
        if (r.top < n_all) {
            raw[r.top] += e * restkv_score_top(a_top, r.rest, others.data(), v_top.data(), wo, d, params, x);
        }

        // the caller counts this call as part of attend
        const int64_t t = ggml_time_us() - t_start;
        scratch.times.score += t;
        scratch.times.attend -= t;
    }

private:
    float norm_of_output(const float * wo) const {
        double sum = 0.0;
        for (uint32_t i = 0; i < view.d_v; ++i) {
            double y = wo ? 0.0 : o[i];
            for (uint32_t k = i; wo && k < view.d_v; ++k) {
                y += (double) wo[(size_t) i * view.d_v + k] * o[k];
            }
            sum += y * y;
        }
        return std::max((float) std::sqrt(sum), 1e-30f);
    }

    const restkv_view &        view;
    restkv_params              params;
    const std::vector<float> & weights;
    restkv_scratch &           scratch;
    std::vector<double>        others;
    std::vector<double>        x;
    std::vector<float>         o;
    std::vector<float>         v_top;
};

void score(const restkv_view & view, const restkv_params & params, uint32_t drift_top, restkv_scratch & scratch) {
    if (params.indicator != RESTKV_INDICATOR_RECONSTRUCTION) {
        restkv_score_attention(view, params, drift_top, scratch);
        return;
    }
    if (params.metric_mode == RESTKV_METRIC_AFTER) {
        score_after(view, params, drift_top, scratch);
        return;
    }
    const std::vector<float> weights = restkv_row_weights(params, view.n_rows);
    std::fill(scratch.raw.begin(), scratch.raw.end(), 0.0f);
    before_sink sink(view, params, weights, scratch);
    restkv_attend(view, scratch, drift_top, sink);
}

restkv_graph_kind graph(const restkv_params & params) {
    switch (params.indicator) {
        case RESTKV_INDICATOR_ATTENTION:
            return RESTKV_GRAPH_ATTENTION;
        case RESTKV_INDICATOR_ATTENTION_V:
            return RESTKV_GRAPH_ATTENTION_V;
        default:
            return params.metric_mode == RESTKV_METRIC_AFTER ? RESTKV_GRAPH_OUTPUT : RESTKV_GRAPH_BEFORE;
    }
}

}  // namespace

extern const restkv_method restkv_method_restkv = {
    "restkv",
    "change of the layer's output when the cell goes, smoothed over time and text",
    /*uses_queries =*/true,
    /*uses_wo =*/true,
    /*pools =*/true,
    score,
    graph,
    restkv_row_weights,
};
