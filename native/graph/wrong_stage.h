// A graph made wrong on purpose, in the test build restkv-wrong-stage and nowhere else: restkv-chat doctor must find it.
// $RESTKV_WRONG_STAGE says which: "attend" sharpens the attention a little, "compact" leaves the last piece of rows,
// "round" multiplies as GPUs do, whose results must be right nevertheless.

#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdlib>
#include <cstring>
#include <vector>

inline void restkv_make_wrong(ggml_cgraph * gf) {
    constexpr float SHARPER = 1.01f;

    const char *  stage = getenv("RESTKV_WRONG_STAGE");
    ggml_tensor * last  = nullptr;
    bool          moves = true;
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        ggml_tensor * node = ggml_graph_node(gf, i);
        if (node->op == GGML_OP_SOFT_MAX) {
            moves = false;
            if (stage && strcmp(stage, "attend") == 0) {
                memcpy(node->op_params, &SHARPER, sizeof(SHARPER));
            }
        }
        last = node->op == GGML_OP_CPY ? node : last;
    }
    if (moves && last && stage && strcmp(stage, "compact") == 0) {
        last->op = GGML_OP_NONE;
    }
}

// The factors of a product become F16 where they lie: nothing else reads them.
inline void restkv_round(ggml_tensor * factor) {
    if (factor->type != GGML_TYPE_F32 || !ggml_is_contiguous(factor)) {
        return;
    }
    std::vector<float> x(ggml_nelements(factor));
    ggml_backend_tensor_get(factor, x.data(), 0, ggml_nbytes(factor));
    for (float & value : x) {
        value = ggml_fp16_to_fp32(ggml_fp32_to_fp16(value));
    }
    ggml_backend_tensor_set(factor, x.data(), 0, ggml_nbytes(factor));
}

inline ggml_status restkv_compute_wrong(ggml_backend_t backend, ggml_cgraph * gf) {
    const char * stage = getenv("RESTKV_WRONG_STAGE");
    if (!stage || strcmp(stage, "round") != 0) {
        return ggml_backend_graph_compute(backend, gf);
    }
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        ggml_tensor * node = ggml_graph_node(gf, i);
        if (node->op == GGML_OP_MUL_MAT) {
            restkv_round(node->src[0]);
            restkv_round(node->src[1]);
        }
        const ggml_context_ptr ctx(ggml_init({ ggml_graph_overhead_custom(1, false), nullptr, /*no_alloc =*/true }));
        ggml_cgraph *          one = ggml_new_graph_custom(ctx.get(), 1, false);
        ggml_graph_add_node(one, node);
        if (const ggml_status status = ggml_backend_graph_compute(backend, one)) {
            return status;
        }
    }
    return GGML_STATUS_SUCCESS;
}
