// TOVA (Oren et al., 2024): attention of the last query, averaged over all query heads of a layer; the KV heads of a
// layer keep one set. The paper protects no cell; here the newest stays, as in kvpress.

#include "methods.h"

static void score(const restkv_view & view, const restkv_params &, uint32_t, restkv_scratch & scratch) {
    std::vector<float> last(view.n_rows, 0.0f);
    last.back() = 1.0f;
    restkv_sum_attention(view, last, 0, scratch);
}

const restkv_method restkv_method_tova = {
    "tova",
    "attention of the last query, one set per layer",
    true,
    false,
    false,
    score,
    RESTKV_BUDGETS_ONE,
    /*per_layer =*/true,
};
