// A recall of one layer on host arrays: parity tests and research.

#include "api/recall.h"

#include <algorithm>
#include <cmath>

restkv_status restkv_check_recall(const restkv_recall_args & a) {
    if (!a.q || !a.row_pos || !a.k || (a.n_own > 0 && !a.k_own)) {
        return restkv_fail(RESTKV_INVALID, "restkv_recall_score: an array is missing");
    }
    if (a.n_head_kv == 0 || a.n_head % a.n_head_kv != 0 || a.n_head == 0 || a.n_embd_head == 0 || a.n_queries == 0 ||
        a.n_archive == 0 || a.n_rows == 0) {
        return restkv_fail(RESTKV_INVALID, "restkv_recall_score: the heads must form groups, and no size may be zero");
    }
    if (a.kernel % 2 == 0 || a.budget <= a.sinks || a.budget - a.sinks <= a.window) {
        return restkv_fail(RESTKV_INVALID,
                           "restkv_recall_score: the kernel must be odd, and the budget above sinks and "
                           "window");
    }
    const auto type = (ggml_type) a.type_k;
    if (type != GGML_TYPE_F32 && type != GGML_TYPE_F16 && type != GGML_TYPE_BF16 && type != GGML_TYPE_Q8_0 &&
        type != GGML_TYPE_Q4_0) {
        return restkv_fail(RESTKV_INVALID, "restkv_recall_score: keys are F32, F16, BF16, Q8_0 or Q4_0");
    }
    if (a.n_embd_head % ggml_blck_size(type) != 0) {
        return restkv_fail(RESTKV_INVALID, "restkv_recall_score: a head does not divide into blocks of this type");
    }
    return RESTKV_OK;
}

restkv_recall_view restkv_recall_view_of(const restkv_recall_args & a) {
    const size_t row = ggml_row_size((ggml_type) a.type_k, a.n_embd_head) * a.n_head_kv;

    restkv_recall_view view;
    view.n_head     = a.n_head;
    view.n_head_kv  = a.n_head_kv;
    view.d_k        = a.n_embd_head;
    view.scale      = a.attn_scale != 0.0f ? a.attn_scale : 1.0f / std::sqrt((float) a.n_embd_head);
    view.softcap    = a.softcap;
    view.attn_sinks = a.attn_sinks;
    view.q          = (const uint8_t *) a.q;
    view.q_row      = a.n_embd_head * sizeof(float);
    view.q_head     = a.n_queries * view.q_row;
    view.n_queries  = a.n_queries;
    view.row_pos.assign(a.row_pos, a.row_pos + a.n_queries);
    view.n    = a.n_archive;
    view.type = view.own_type = (ggml_type) a.type_k;
    view.keys                 = [&a, row](uint32_t from, uint32_t, std::vector<uint8_t> &) {
        return (const uint8_t *) a.k + from * row;
    };
    view.own     = (const uint8_t *) a.k_own;
    view.own_row = row;
    view.n_own   = a.n_own;
    return view;
}

void restkv_recall_arrays(const restkv_recall_args & a, const restkv_recall_view & view, restkv_recall_attends * device,
                          float * scores, int32_t * chosen) {
    restkv_recall_work work;
    restkv_run_team(std::max(1u, a.n_threads), [&](restkv_member & member) {
        work.run(view, { a.n_rows, a.kernel, a.sinks, a.window, a.budget }, member, device);
    });
    std::copy(work.scores.begin(), work.scores.end(), scores);
    std::copy(work.chosen.begin(), work.chosen.end(), chosen);
}

restkv_status restkv_recall_score(const restkv_recall_args * args, float * scores, int32_t * chosen) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!args || !scores || !chosen) {
            return restkv_fail(RESTKV_INVALID, "restkv_recall_score: no arguments");
        }
        if (const restkv_status status = restkv_check_recall(*args)) {
            return status;
        }
        restkv_recall_arrays(*args, restkv_recall_view_of(*args), nullptr, scores, chosen);
        return RESTKV_OK;
    });
}
