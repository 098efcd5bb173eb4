#include "tests/cache.h"

#include "tests/check.h"
#include "tests/session.h"

#include <cstring>

void test_refusals(llama_model * model, const char * path) {
    restkv_params p = settings("restkv");
    p.capacity      = p.budget;
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_INVALID);
    p        = settings("restkv");
    p.window = 0;
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_INVALID);
    p      = settings("restkv");
    p.rows = RESTKV_ROWS_SUM;
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_INVALID);
    p.rows = RESTKV_ROWS_MAX;
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_INVALID && strstr(restkv_last_error(), "largest") != nullptr);
    p        = settings("fifo");
    p.window = 0;
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_INVALID);
    restkv_share_params shares = { RESTKV_ALLOCATION_ADA, 0, nullptr, -1, 96, 0.2 };
    CHECK(restkv_arm_shares(&shares) == RESTKV_INVALID);  // nothing is armed
    p = settings("restkv");
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_OK);
    shares.head_max = p.budget - 1;
    CHECK(restkv_arm_shares(&shares) == RESTKV_INVALID);
    const uint32_t budgets[] = { 60, 37 };  // their mean is not 48
    shares                   = { RESTKV_ALLOCATION_PYRAMID, 2, budgets, -1, 0, 0.0 };
    CHECK(restkv_arm_shares(&shares) == RESTKV_INVALID);
    for (const char * method : { "tova", "h2o", "lacache", "fifo", "streamingllm" }) {
        p = settings(method);
        CHECK(restkv_arm(&p, path, nullptr) == RESTKV_OK);
        shares = { RESTKV_ALLOCATION_ADA, 0, nullptr, -1, 2 * p.budget, 0.2 };
        CHECK(restkv_arm_shares(&shares) == RESTKV_INVALID && strstr(restkv_last_error(), method) != nullptr);
        const bool     one    = strcmp(method, "streamingllm") != 0;
        const uint32_t fall[] = { p.budget + 2, p.budget - 2 };
        shares                = { RESTKV_ALLOCATION_PYRAMID, 2, fall, one ? -1 : 4, 0, 0.0 };
        CHECK(restkv_arm_shares(&shares) == (one ? RESTKV_INVALID : RESTKV_OK));
        CHECK(!one || strstr(restkv_last_error(), "one budget") != nullptr);
        restkv_disarm();
    }
    p = settings("nothing");
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_INVALID);
    p = settings("restkv");
    CHECK(restkv_arm(&p, "/nonexistent/model.gguf", nullptr) == RESTKV_OK);
    llama_context_params c = llama_context_default_params();
    c.n_ctx                = 256;
    c.flash_attn_type      = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    CHECK(llama_init_from_model(model, c) == nullptr);
    CHECK(restkv_last_status() == RESTKV_IO && strstr(restkv_last_error(), "/nonexistent/model.gguf") != nullptr);
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_OK);
    c.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    CHECK(llama_init_from_model(model, c) == nullptr);
    CHECK(restkv_last_status() == RESTKV_INVALID && strstr(restkv_last_error(), "flash attention") != nullptr);

    // a batch that is larger than the reserve: llama_decode says so, no eviction has failed
    c.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    c.n_batch         = 32;
    p.capacity        = p.budget + 16;
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_OK);
    {
        session s;
        s.ctx = llama_init_from_model(model, c);
        CHECK(s.feed(30) == 0 && s.feed(30) == 0);
        CHECK(restkv_get_stats(nullptr, nullptr) == RESTKV_INVALID);
        restkv_clear_error();
        CHECK(s.feed(32) == 1);
        CHECK(restkv_last_status() == RESTKV_OK && restkv_last_error()[0] == '\0');
    }

    // without restkv_arm a context is llama.cpp's own
    c.flash_attn_type     = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * plain = llama_init_from_model(model, c);
    CHECK(plain != nullptr);
    restkv_stats stats;
    CHECK(restkv_get_stats(plain, &stats) == RESTKV_INVALID);
    CHECK(restkv_evict(plain, 0) == RESTKV_INVALID);
    llama_free(plain);
}
