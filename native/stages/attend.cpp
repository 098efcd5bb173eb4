#include "stages/panel.h"
#include "stages/stages.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// One panel of a small cache stays in the second-level cache and is shared by the query heads of a group.
static constexpr uint32_t PANEL_FLOATS = 256 * 1024;
static constexpr uint32_t LOGIT_FLOATS = 256 * 1024;

static uint32_t panel_cells(uint32_t n_pad, uint32_t d) {
    const uint32_t n = std::max(PANEL_FLOATS / std::max(d, 1u) / RESTKV_LANES * RESTKV_LANES, RESTKV_LANES);
    return std::min(n_pad, n);
}

// At least a block of the matrix product, at 128K cells too: 8 floats per cell.
static uint32_t logit_rows(uint32_t n_pad, uint32_t n_rows) {
    return std::min(std::max(n_rows, 1u), std::max(8u, LOGIT_FLOATS / n_pad));
}

restkv_scratch::restkv_scratch(uint32_t n_cells, uint32_t group, uint32_t d_k, uint32_t d_v, uint32_t n_rows) :
    n_pad(restkv_pad(std::max(n_cells, 1u))),
    panel_k(panel_cells(n_pad, d_k)),
    panel_v(panel_cells(n_pad, d_v)),
    block_rows(logit_rows(n_pad, n_rows)),
    keys((size_t) d_k * panel_k),
    values((size_t) d_v * panel_v),
    logits((size_t) block_rows * n_pad),
    raw((size_t) group * n_pad),
    smoothed((size_t) group * n_pad),
    row(std::max({ n_pad, d_k, d_v })),
    bins(n_pad),
    kept(n_pad),
    pos(n_pad),
    queries((size_t) group * n_rows * d_k),
    drift(group),
    kernels(group),
    shifts(group) {}

size_t restkv_scratch::bytes(uint32_t n_cells, uint32_t group, uint32_t d_k, uint32_t d_v, uint32_t n_rows) {
    const size_t n_pad = restkv_pad(std::max(n_cells, 1u));
    return sizeof(float) *
               ((size_t) d_k * panel_cells(n_pad, d_k) + (size_t) d_v * panel_cells(n_pad, d_v) +
                logit_rows(n_pad, n_rows) * n_pad + 2 * group * n_pad + 3 * n_pad + (size_t) group * n_rows * d_k) +
           sizeof(uint16_t) * n_pad;
}

void restkv_load_panel(const uint8_t * rows, size_t stride, ggml_type type, uint32_t n, uint32_t d, float * panel,
                       size_t ld, float * row) {
    const restkv_kernels * kernels = restkv_cpu_kernels();
    if (type == GGML_TYPE_F16) {
        kernels->transpose_f16(rows, stride, n, d, panel, ld);
        return;
    }
    const ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    const uint32_t        n_pad    = restkv_pad(n);
    for (uint32_t j = 0; j < n; ++j) {
        const float * x = row;
        if (type == GGML_TYPE_F32) {
            x = (const float *) (rows + j * stride);
        } else {
            to_float(rows + j * stride, row, d);
        }
        for (uint32_t k = 0; k < d; ++k) {
            panel[k * ld + j] = x[k];
        }
    }
    for (uint32_t k = 0; k < d && n < n_pad; ++k) {
        std::fill(panel + k * ld + n, panel + k * ld + n_pad, 0.0f);
    }
}

uint32_t restkv_load_keys(const restkv_view & view, restkv_scratch & s, uint32_t from) {
    const uint32_t n = std::min(s.panel_k, view.n_cells - from);
    if (s.keys_of != view.k || s.keys_from != from) {
        restkv_load_panel(view.k + from * view.k_stride, view.k_stride, view.k_type, n, view.d_k, s.keys.data(),
                          s.panel_k, s.row.data());
        s.keys_of   = view.k;
        s.keys_from = from;
    }
    return n;
}

uint32_t restkv_load_values(const restkv_view & view, restkv_scratch & s, uint32_t from) {
    const uint32_t n = std::min(s.panel_v, view.n_cells - from);
    if (s.values_of != view.v || s.values_from != from) {
        restkv_load_panel(view.v + from * view.v_stride, view.v_stride, view.v_type, n, view.d_v, s.values.data(),
                          s.panel_v, s.row.data());
        s.values_of   = view.v;
        s.values_from = from;
    }
    return n;
}

std::vector<float> restkv_row_weights(const restkv_params & params, uint32_t n_rows) {
    const int32_t rows = params.rows != RESTKV_ROWS_AUTO ? params.rows :
                         params.use_ema                  ? RESTKV_ROWS_EMA :
                                                           RESTKV_ROWS_MEAN;

    if (rows == RESTKV_ROWS_MAX) {
        return {};
    }
    std::vector<float> e(n_rows, rows == RESTKV_ROWS_SUM ? 1.0f : 1.0f / n_rows);
    if (rows == RESTKV_ROWS_LAST) {
        std::fill(e.begin(), e.end(), 0.0f);
        e.back() = 1.0f;
    }
    if (rows == RESTKV_ROWS_EMA || rows == RESTKV_ROWS_INVERTED_EMA) {
        const double alpha = params.alpha < 0.0f ? 2.0 / (n_rows + 1.0) : params.alpha;
        for (uint32_t i = 0; i < n_rows; ++i) {
            const double decay = std::pow(1.0 - alpha, n_rows - 1.0 - i);
            e[i]               = (float) (i == 0 ? decay : alpha * decay);
        }
    }
    if (rows == RESTKV_ROWS_INVERTED_EMA) {
        std::reverse(e.begin(), e.end());
    }
    return e;
}

void restkv_drop_non_finite(float * z, uint32_t n) {
    uint32_t bad = 0;
    for (uint32_t j = 0; j < n; ++j) {
        uint32_t bits;
        memcpy(&bits, z + j, sizeof(bits));
        bad |= (bits & 0x7fffffffu) >= 0x7f800000u;
    }
    for (uint32_t j = 0; bad && j < n; ++j) {
        z[j] = std::isfinite(z[j]) ? z[j] : -1e30f;
    }
}

void restkv_attend(const restkv_view & view, restkv_scratch & s, uint32_t drift_top, restkv_row_sink & sink) {
    const int64_t          t_start = ggml_time_us();
    const restkv_kernels * kernels = restkv_cpu_kernels();

    const uint32_t n_half = view.n_rows / 2;

    for (uint32_t h = 0; h < view.group; ++h) {
        const float * q        = view.q + (size_t) h * view.n_rows * view.d_k;
        double        means[2] = { 0.0, 0.0 };  // of the older and the newer half of the rows
        for (uint32_t r0 = 0; r0 < view.n_rows; r0 += s.block_rows) {
            const uint32_t n_block = std::min(s.block_rows, view.n_rows - r0);

            for (uint32_t from = 0; from < view.n_cells;) {
                const uint32_t n = restkv_load_keys(view, s, from);
                kernels->matmul(q + (size_t) r0 * view.d_k, n_block, view.d_k, s.keys.data(), s.panel_k, n,
                                s.logits.data() + from, s.n_pad);
                from += n;
            }

            for (uint32_t r = 0; r < n_block; ++r) {
                const uint32_t i = r0 + r;
                float *        z = s.logits.data() + (size_t) r * s.n_pad;
                const uint32_t n_visible =
                    (uint32_t) (std::upper_bound(view.pos, view.pos + view.n_cells, view.row_pos[i]) - view.pos);
                if (n_visible == 0) {
                    continue;
                }
                restkv_drop_non_finite(z, n_visible);
                if (view.softcap > 0.0f) {
                    kernels->softcap(z, n_visible, view.softcap);
                }

                if (drift_top > 0) {
                    const uint32_t n_top = std::min(drift_top, n_visible);
                    means[i < n_half ? 0 : 1] +=
                        (double) kernels->top_pos_sum(z, view.pos, n_visible, n_top, s.bins.data()) / n_top;
                }

                const uint32_t top        = kernels->argmax(z, n_visible);
                float          max        = z[top];
                const float    sink_logit = view.sinks ? view.sinks[h] : -INFINITY;
                max                       = std::max(max, sink_logit);
                double       rest   = kernels->exp_sum(z, n_visible, max, top) + std::exp((double) sink_logit - max);
                const double sum    = rest + z[top];
                const float  factor = (float) (1.0 / sum);
                for (uint32_t j = 0; j < n_visible; ++j) {
                    z[j] *= factor;
                }
                sink.row({ h, i, z, n_visible, top, rest / sum });
            }
        }
        s.drift[h] = view.n_rows > 1 ? means[0] / n_half - means[1] / (view.n_rows - n_half) : 0.0;
    }

    s.times.attend += ggml_time_us() - t_start;
}
