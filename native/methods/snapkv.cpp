// SnapKV (Li et al., 2024), as the ReST-KV repository runs it: attention of the window, summed over its rows.

#include "methods/methods.h"

static void score(const restkv_view & view, const restkv_params &, uint32_t drift_top, restkv_scratch & scratch) {
    restkv_sum_attention(view, std::vector<float>(view.n_rows, 1.0f), drift_top, scratch);
}

extern const restkv_method restkv_method_snapkv = {
    "snapkv",
    "attention of the window, pooled",
    /*uses_queries =*/true,
    /*uses_wo =*/false,
    /*pools =*/true,
    score,
    restkv_graph_is<RESTKV_GRAPH_ATTENTION>,
    /*row_weights =*/nullptr,  // a plain sum
};
