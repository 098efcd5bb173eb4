// StreamingLLM (Xiao et al., 2024): the first cells (attention sinks) and the window. With window = budget - sinks the
// cache holds `sinks` first and the most recent cells. Positions are kept, not re-assigned.

#include "methods/methods.h"

static void score(const restkv_view & view, const restkv_params &, uint32_t, restkv_scratch & scratch) {
    for (uint32_t h = 0; h < view.group; ++h) {
        float * raw = scratch.raw.data() + (size_t) h * scratch.n_pad;
        for (uint32_t j = 0; j < view.n_past; ++j) {
            raw[j] = -(float) j;
        }
    }
}

extern const restkv_method restkv_method_streamingllm = {
    "streamingllm",
    "first cells and the most recent ones",
    /*uses_queries =*/false,
    /*uses_wo =*/false,
    /*pools =*/false,
    score,
    restkv_graph_is<RESTKV_GRAPH_MOVES>,
    /*row_weights =*/nullptr,
    RESTKV_BUDGETS_LAYER,
};
