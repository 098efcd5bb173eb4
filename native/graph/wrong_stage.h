// A graph made wrong on purpose, in the test build restkv-wrong-stage and nowhere else: restkv-chat doctor must find it.
// $RESTKV_WRONG_STAGE says which: "attend" sharpens the attention a little, "compact" leaves the last piece of rows.

#pragma once

#include "ggml.h"

#include <cstdlib>
#include <cstring>

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
