// The C API of the stages on host arrays: parity tests and research, no model needed.

#include "api/score.h"

#include "api/params.h"
#include "methods/methods.h"
#include "stages/compact.h"
#include "stages/wo.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>

// Queries that are read.
static uint32_t rows_of(const restkv_score_args & a) {
    if (!restkv_find_method(a.params.method)->uses_queries) {
        return 0;
    }
    return a.n_rows > 0 ? a.n_rows : a.params.window;
}

bool restkv_is_kv_type(int32_t type, uint32_t n_embd_head) {
    for (const ggml_type known : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        if (type == known) {
            return n_embd_head % ggml_blck_size(known) == 0;
        }
    }
    return false;
}

restkv_status restkv_check_score(const restkv_score_args & a, const restkv_score_out & out) {
    if (const restkv_status status = restkv_check_params(a.params)) {
        return status;
    }
    if (!a.q || !a.k || !a.v || !out.raw || !out.smoothed || !out.kernel_sizes || !out.shifts || !out.indices) {
        return restkv_fail(RESTKV_INVALID, "restkv_score: an array is missing");
    }
    if (a.n_head == 0 || a.n_head_kv == 0 || a.n_head % a.n_head_kv != 0 || a.n_embd_head == 0 || a.n_embd_head > 512) {
        return restkv_fail(RESTKV_INVALID,
                           "restkv_score: the heads must be a multiple of the KV heads, their size at most 512");
    }
    const restkv_method * method = restkv_find_method(a.params.method);
    if (method->uses_queries && (rows_of(a) == 0 || rows_of(a) > a.n_cells)) {
        return restkv_fail(RESTKV_INVALID, "restkv_score: no queries, or more of them than cells");
    }
    const std::string reason = method->refuse ? method->refuse(a.params, a.n_layer) : "";
    if (!reason.empty() || (method->refuse && (a.layer >= a.n_layer || a.cursor > a.params.budget))) {
        return restkv_fail(RESTKV_INVALID, reason.empty() ? "restkv_score: no such layer or cursor" : reason);
    }
    if (a.n_cells <= a.params.window) {
        return restkv_fail(RESTKV_INVALID, "restkv_score: more cells than the window are needed");
    }
    if (!restkv_is_kv_type(a.type_kv, a.n_embd_head)) {
        return restkv_fail(RESTKV_INVALID,
                           "restkv_score: k and v must be F32, F16, BF16, Q8_0 or Q4_0, in whole blocks");
    }
    if (!std::isfinite(a.softcap) || a.softcap < 0.0f) {
        return restkv_fail(RESTKV_INVALID, "restkv_score: the soft-cap must not be negative");
    }
    if (a.wo && a.n_embd_out == 0) {
        return restkv_fail(RESTKV_INVALID, "restkv_score: W_o has no rows");
    }
    if (method->pools && a.params.pooling == RESTKV_POOLING_ADAPTIVE && a.params.window % 2) {
        return restkv_fail(RESTKV_INVALID, "the window must be even: the drift compares its two halves");
    }
    return RESTKV_OK;
}

std::vector<float> restkv_score_factors(const restkv_score_args & a) {
    if (!a.wo || !a.params.use_wo || !restkv_find_method(a.params.method)->uses_wo) {
        return {};
    }
    const uint32_t     d = a.n_embd_head;
    std::vector<float> factors((size_t) a.n_head * d * d);
    for (uint32_t h = 0; h < a.n_head; ++h) {
        std::vector<double> gram((size_t) d * d, 0.0);
        restkv_add_gram(a.wo + (size_t) h * d, (size_t) a.n_head * d, a.n_embd_out, d, gram.data());
        restkv_factor(gram.data(), d, factors.data() + (size_t) h * d * d);
    }
    return factors;
}

// One set for all KV heads: by the mean of all query heads, which `smoothed` then holds in every row.
static void share_set(const restkv_score_args & a, restkv_score_out & out, uint32_t n_keep) {
    const uint32_t       n_past = a.n_cells - a.params.window;
    const uint32_t       n_sets = a.params.reduce == RESTKV_REDUCE_NONE ? a.n_head : a.n_head_kv;
    std::vector<float>   mean(n_past);
    std::vector<int32_t> selected(n_past);
    for (uint32_t j = 0; j < n_past; ++j) {
        double sum = 0.0;
        for (uint32_t h = 0; h < a.n_head; ++h) {
            sum += out.smoothed[(size_t) h * n_past + j];
        }
        mean[j] = (float) (sum / a.n_head);
    }
    restkv_select_top(mean.data(), n_past, n_keep, selected.data());
    for (uint32_t h = 0; h < a.n_head; ++h) {
        std::copy(mean.begin(), mean.end(), out.smoothed + (size_t) h * n_past);
    }
    for (uint32_t s = 0; s < n_sets; ++s) {
        std::copy_n(selected.data(), n_keep, out.indices + (size_t) s * n_keep);
    }
}

bool restkv_score_drifts(const restkv_score_args & a, const int32_t * pos) {
    return restkv_find_method(a.params.method)->pools && a.params.pooling == RESTKV_POOLING_ADAPTIVE &&
           (!a.pos || (int64_t) pos[a.n_cells - 1] - pos[0] > a.params.scale);
}

void restkv_score_take(const restkv_score_args & a, uint32_t head_kv, const restkv_scratch & scratch,
                       std::vector<int32_t> & selected, const restkv_score_out & out) {
    const restkv_params & p      = a.params;
    const uint32_t        group  = a.n_head / a.n_head_kv;
    const uint32_t        n_past = a.n_cells - p.window;
    const uint32_t        n_keep = std::min(p.budget - p.window, n_past);
    for (uint32_t g = 0; g < group; ++g) {
        const uint32_t h = head_kv * group + g;
        std::copy_n(scratch.raw.data() + (size_t) g * scratch.n_pad, n_past, out.raw + (size_t) h * n_past);
        out.kernel_sizes[h] = scratch.kernels[g];
        out.shifts[h]       = scratch.shifts[g];
        const float * y     = scratch.smoothed.data() + (size_t) g * scratch.n_pad;
        if (p.reduce == RESTKV_REDUCE_NONE) {
            restkv_select_top(y, n_past, n_keep, selected.data());
            std::copy_n(selected.data(), n_keep, out.indices + (size_t) h * n_keep);
        }
        std::copy_n(y, n_past, out.smoothed + (size_t) h * n_past);
    }
    if (p.reduce != RESTKV_REDUCE_NONE) {
        std::copy_n(scratch.kept.data(), n_keep, out.indices + (size_t) head_kv * n_keep);
    }
}

restkv_status restkv_score(const restkv_score_args * args, restkv_score_out * out) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!args || !out) {
            return restkv_fail(RESTKV_INVALID, "restkv_score: no arguments");
        }
        if (const restkv_status status = restkv_check_score(*args, *out)) {
            return status;
        }
        const restkv_score_args & a      = *args;
        const restkv_params &     p      = a.params;
        const restkv_method *     method = restkv_find_method(p.method);

        const uint32_t group  = a.n_head / a.n_head_kv;
        const uint32_t n_rows = rows_of(a);
        const uint32_t n_past = a.n_cells - p.window;
        const uint32_t n_keep = p.budget - p.window;
        const size_t   stride = ggml_row_size((ggml_type) a.type_kv, a.n_embd_head);
        const float    scale  = a.attn_scale != 0.0f ? a.attn_scale : 1.0f / std::sqrt((float) a.n_embd_head);

        const std::vector<float> wo = restkv_score_factors(a);

        std::vector<float> q(a.q, a.q + (size_t) a.n_head * n_rows * a.n_embd_head);
        for (float & x : q) {
            x *= scale;
        }
        std::vector<int32_t> plain(a.n_cells);
        std::iota(plain.begin(), plain.end(), 0);
        std::vector<int32_t> selected(n_past);
        std::vector<int32_t> row_pos(n_rows);

        restkv_scratch scratch(a.n_cells, group, a.n_embd_head, a.n_embd_head, n_rows);
        for (uint32_t hk = 0; hk < a.n_head_kv; ++hk) {
            restkv_view view;
            view.k        = (const uint8_t *) a.k + (size_t) hk * a.n_cells * stride;
            view.v        = (const uint8_t *) a.v + (size_t) hk * a.n_cells * stride;
            view.k_stride = view.v_stride = stride;
            view.k_type = view.v_type = (ggml_type) a.type_kv;
            view.n_cells              = a.n_cells;
            view.n_past               = n_past;
            view.pos                  = a.pos ? a.pos + (size_t) hk * a.n_cells : plain.data();
            view.q                    = q.data() + (size_t) hk * group * n_rows * a.n_embd_head;
            view.n_rows               = n_rows;
            view.row_pos              = row_pos.data();
            view.group                = group;
            view.d_k = view.d_v = a.n_embd_head;
            view.softcap        = a.softcap;
            view.sinks          = a.sinks ? a.sinks + (size_t) hk * group : nullptr;
            view.wo       = wo.empty() ? nullptr : wo.data() + (size_t) hk * group * a.n_embd_head * a.n_embd_head;
            view.layer    = a.layer;
            view.head_kv  = hk;
            view.i_layer  = a.layer;
            view.n_layers = a.n_layer;
            view.cursor   = a.cursor;
            for (uint32_t i = 0; i < n_rows; ++i) {
                const bool blind = a.all_visible && method->accumulates && i + p.window < n_rows;
                row_pos[i]       = view.pos[blind ? a.n_cells - 1 : a.n_cells - n_rows + i];
            }

            const uint32_t drift_top = restkv_score_drifts(a, view.pos) ? std::min(n_keep, n_past) : 0;
            restkv_score_head(view, p, drift_top, n_keep, scratch);
            restkv_score_take(a, hk, scratch, selected, *out);
        }
        if (method->per_layer) {
            share_set(a, *out, std::min(n_keep, n_past));
        }
        return RESTKV_OK;
    });
}

restkv_status restkv_select(const float * scores, uint32_t n, uint32_t n_keep, int32_t * out) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!scores || !out) {
            return restkv_fail(RESTKV_INVALID, "restkv_select: an array is missing");
        }
        std::vector<int32_t> order(n);
        std::copy_n(order.data(), restkv_select_top(scores, n, n_keep, order.data()), out);
        return RESTKV_OK;
    });
}

restkv_status restkv_compact(void * rows, size_t row_stride, size_t offset, size_t n_bytes, const int32_t * src,
                             uint32_t n) {
    restkv_clear_error();
    if (!rows || !src || offset > row_stride || n_bytes > row_stride - offset) {
        return restkv_fail(RESTKV_INVALID, "restkv_compact: an array is missing or the bytes leave their row");
    }
    for (uint32_t i = 0; i < n; ++i) {
        if (src[i] < (int32_t) i || (i > 0 && src[i] <= src[i - 1])) {
            return restkv_fail(RESTKV_INVALID, "restkv_compact: the rows must be ascending");
        }
    }
    restkv_move_rows((uint8_t *) rows + offset, row_stride, n_bytes, src, n);
    return RESTKV_OK;
}
