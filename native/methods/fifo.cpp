// First in, first out: the most recent cells and nothing else. A sliding window, or StreamingLLM without sinks.

#include "methods/methods.h"

static void score(const restkv_view & view, const restkv_params &, uint32_t, restkv_scratch & scratch) {
    for (uint32_t h = 0; h < view.group; ++h) {
        float * raw = scratch.raw.data() + (size_t) h * scratch.n_pad;
        for (uint32_t j = 0; j < view.n_past; ++j) {
            raw[j] = (float) j;
        }
    }
}

extern const restkv_method restkv_method_fifo = {
    "fifo",
    "the most recent cells",
    /*uses_queries =*/false,
    /*uses_wo =*/false,
    /*pools =*/false,
    score,
    restkv_graph_is<RESTKV_GRAPH_MOVES>,
    /*row_weights =*/nullptr,
    RESTKV_BUDGETS_ONE,
};
