#include "tests/session.h"

#include "tests/check.h"

#include <cstdio>
#include <cstring>

restkv_params settings(const char * method) {
    restkv_params p = {};
    snprintf(p.method, sizeof(p.method), "%s", method);
    p.budget    = 48;
    p.capacity  = 96;
    p.window    = 8;
    p.kernel    = 5;
    p.scale     = 40;
    p.pooling   = RESTKV_POOLING_ADAPTIVE;
    p.reduce    = RESTKV_REDUCE_MEAN;
    p.alpha     = 0.3f;
    p.tau       = 1.0f;
    p.use_wo    = 1;
    p.use_ema   = 1;
    p.n_threads = 2;
    p.sinks     = 4;
    p.span      = 1;
    p.n_ring    = strcmp(method, "h2o") == 0 ? 24 : 0;
    return p;
}

// Budgets that fall from layer to layer and have the plain one as their mean.
static std::vector<uint32_t> pyramid(const llama_model * model, const restkv_params & params) {
    restkv_model_info info;
    CHECK(restkv_model_probe(model, GGML_TYPE_F16, GGML_TYPE_F16, &info) == RESTKV_OK);
    std::vector<uint32_t> budgets(info.n_layer, params.budget);
    for (uint32_t l = 0; l < info.n_layer / 2; ++l) {
        const uint32_t more = (params.budget - params.window) / (l + 2);
        budgets[l] += more;
        budgets[info.n_layer - 1 - l] -= more;
    }
    return budgets;
}

void open(session & s, llama_model * model, const char * path, const restkv_params & params, ggml_type type,
          int32_t allocation, const restkv_archive_params * archive) {
    llama_context_params p = llama_context_default_params();
    p.n_ctx                = 4096;
    p.n_batch              = 32;
    p.n_ubatch             = 16;
    p.n_threads            = 1;
    p.n_threads_batch      = 1;
    p.type_k               = type;
    p.type_v               = type;
    p.flash_attn_type      = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    CHECK(restkv_arm(&params, path, nullptr) == RESTKV_OK);
    const std::vector<uint32_t> budgets = pyramid(model, params);
    const restkv_share_params   shares  = { allocation, (uint32_t) budgets.size(), budgets.data(),
                                            -1,         2 * params.budget,         0.2 };
    CHECK(restkv_arm_shares(&shares) == RESTKV_OK);
    if (archive) {
        CHECK(restkv_arm_archive(archive) == RESTKV_OK);
    }
    s.ctx = llama_init_from_model(model, p);
    restkv_disarm();
}
