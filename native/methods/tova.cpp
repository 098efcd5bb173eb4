// TOVA (Oren et al., 2024): attention of the last query, averaged over all query heads of a layer; the KV heads of a
// layer keep one set. The paper protects no cell; here the newest stays, as in kvpress.

#include "methods/methods.h"

static std::vector<float> row_weights(const restkv_params &, uint32_t n_rows) {
    std::vector<float> last(n_rows, 0.0f);
    last.back() = 1.0f;
    return last;
}

static void score(const restkv_view & view, const restkv_params & params, uint32_t, restkv_scratch & scratch) {
    restkv_sum_attention(view, row_weights(params, view.n_rows), 0, scratch);
}

extern const restkv_method restkv_method_tova = {
    "tova",
    "attention of the last query, one set per layer",
    /*uses_queries =*/true,
    /*uses_wo =*/false,
    /*pools =*/false,
    score,
    restkv_graph_is<RESTKV_GRAPH_ATTENTION>,
    row_weights,
    RESTKV_BUDGETS_ONE,
    /*per_layer =*/true,
};
