// H2O (Zhang et al., 2023): attention added up over every query since the cell entered, causal. Inside the engine the
// votes are counted while the text is read (native/cache/votes.cpp); on host arrays all of them are given.

#include "methods/methods.h"

#include <algorithm>

static void score(const restkv_view & view, const restkv_params &, uint32_t, restkv_scratch & scratch) {
    if (!view.sums) {
        restkv_sum_attention(view, std::vector<float>(view.n_rows, 1.0f), 0, scratch);
        return;
    }
    for (uint32_t h = 0; h < view.group; ++h) {
        std::copy_n(view.sums, view.n_past, scratch.raw.data() + (size_t) h * scratch.n_pad);
    }
}

extern const restkv_method restkv_method_h2o = {
    "h2o",
    "attention of every query since the cell entered, summed",
    /*uses_queries =*/true,
    /*uses_wo =*/false,
    /*pools =*/false,
    score,
    restkv_graph_is<RESTKV_GRAPH_VOTES>,
    /*row_weights =*/nullptr,
    RESTKV_BUDGETS_ONE,
    /*per_layer =*/false,
    /*accumulates =*/true,
};
