// Memory that runs out at every place where an eviction takes some: it never throws out of the library, and leaves either
// the cache as it was or an empty one. Takes the model files given as arguments. Global new is replaced here, so what the
// library takes comes from it too.

#include "stages/parallel.h"
#include "tests/check.h"

#include "llama.h"
#include "restkv.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

static thread_local int64_t n_left = -1;  // allocations of this thread until memory has run out, or -1

void * operator new(size_t n) {
    void * p = n_left == 0 ? nullptr : malloc(n > 0 ? n : 1);
    if (!p) {
        throw std::bad_alloc();
    }
    n_left -= n_left > 0 ? 1 : 0;
    return p;
}

void * operator new(size_t n, const std::nothrow_t &) noexcept {
    try {
        return operator new(n);
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

void operator delete(void * p) noexcept {
    free(p);
}

void operator delete(void * p, size_t) noexcept {
    free(p);
}

// Fewer threads do the same work.
static void test_parallel() {
    for (int64_t k = 0; k < 24; ++k) {
        std::atomic<uint32_t>                         n_done{ 0 };
        bool                                          thrown = false;
        const std::function<void(uint32_t, uint32_t)> work   = [&](uint32_t, uint32_t) { n_done++; };
        n_left                                               = k;
        try {
            restkv_parallel(16, 4, work);
        } catch (const std::bad_alloc &) {
            thrown = true;
        }
        n_left = -1;
        CHECK(!thrown && n_done == 16);
    }
}

struct text {
    llama_context * ctx;
    llama_pos       pos = 0;

    int feed(int32_t n) {
        std::vector<llama_token> tokens(n);
        for (int32_t i = 0; i < n; ++i) {
            tokens[i] = 5 + (pos + i) * 7 % 40;
        }
        llama_batch batch = llama_batch_init(n, 0, 1);
        batch.n_tokens    = n;
        for (int32_t i = 0; i < n; ++i) {
            batch.token[i]     = tokens[i];
            batch.pos[i]       = pos + i;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i]    = i == n - 1;
        }
        const int status = llama_decode(ctx, batch);
        llama_batch_free(batch);
        pos += status == 0 ? n : 0;
        return status;
    }

    void read_again() {
        llama_memory_clear(llama_get_memory(ctx), true);
        pos = 0;
        CHECK(feed(30) == 0 && feed(30) == 0 && feed(30) == 0);
    }

    std::vector<float> logits_after(int32_t n, int32_t n_vocab) {
        CHECK(feed(n) == 0);
        const float * x = llama_get_logits_ith(ctx, -1);
        return std::vector<float>(x, x + n_vocab);
    }
};

static llama_context * open(llama_model * model, const char * path, const char * method, uint8_t stages,
                            int32_t allocation, bool archive) {
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
    p.n_threads = 1;
    p.n_ring    = strcmp(method, "h2o") == 0 ? 96 : 0;
    p.stages    = stages;

    llama_context_params c = llama_context_default_params();
    c.n_ctx                = 1024;
    c.n_batch              = 32;
    c.n_ubatch             = 32;
    c.n_threads            = 1;
    c.n_threads_batch      = 1;
    c.flash_attn_type      = LLAMA_FLASH_ATTN_TYPE_ENABLED;

    const restkv_share_params   shares = { allocation, 0, nullptr, -1, 96, 0.2 };
    const restkv_archive_params rows   = { RESTKV_PLACE_RAM, -1, -1, 1024, nullptr, 5, 7, 4, 16 };
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_OK && restkv_arm_shares(&shares) == RESTKV_OK);
    CHECK(!archive || restkv_arm_archive(&rows) == RESTKV_OK);
    llama_context * ctx = llama_init_from_model(model, c);
    restkv_disarm();
    CHECK(ctx != nullptr);
    return ctx;
}

static void test_evict(llama_model * model, const char * path, const char * method, uint8_t stages,
                       int32_t allocation) {
    text s{ open(model, path, method, stages, allocation, false) };
    if (!s.ctx) {
        return;
    }
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    s.read_again();
    CHECK(restkv_evict(s.ctx, 0) == RESTKV_OK);
    const std::vector<float> expected = s.logits_after(6, n_vocab);

    uint32_t n_whole = 0, n_lost = 0;
    bool     right = true, evicted = false;
    for (int64_t k = 0; !evicted && k < 100000; k += 1 + k / 24) {
        s.read_again();
        restkv_status status = RESTKV_OK;
        bool          thrown = false;
        n_left               = k;
        try {
            status = restkv_evict(s.ctx, 0);
        } catch (...) {
            thrown = true;
        }
        n_left = -1;
        CHECK(!thrown);
        const std::string why = restkv_last_error();

        evicted = status == RESTKV_OK;
        restkv_stats stats;
        CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK);
        if (!evicted) {
            right = right && !why.empty();
            if (stats.n_cells == 0) {
                n_lost++;
                right = right && why.find("read the text again") != std::string::npos;
                right = right && s.feed(4) == 1 && s.feed(4) == 1;
                s.read_again();
            } else {
                n_whole++;
                right = right && stats.pos_next == s.pos;
            }
            right = right && restkv_evict(s.ctx, 0) == RESTKV_OK;
        }
        right = right && s.logits_after(6, n_vocab) == expected;
    }
    fprintf(stderr, "%s, stages %d, allocation %d: %u as it was, %u lost\n", method, stages, allocation, n_whole,
            n_lost);
    CHECK(evicted && right && n_whole > 0);
    llama_free(s.ctx);
}

// A recall that fails leaves the cells as they were, or none.
static void test_recall(llama_model * model, const char * path, uint8_t stages) {
    text s{ open(model, path, "restkv", stages, RESTKV_ALLOCATION_UNIFORM, true) };
    if (!s.ctx) {
        return;
    }
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    const auto    ready   = [&] {
        s.read_again();
        CHECK(restkv_evict(s.ctx, 0) == RESTKV_OK && s.feed(6) == 0);
    };
    ready();
    CHECK(restkv_recall(s.ctx, 0) == RESTKV_OK);
    const std::vector<float> expected = s.logits_after(6, n_vocab);

    uint32_t n_whole = 0, n_lost = 0;
    bool     right = true, recalled = false;
    for (int64_t k = 0; !recalled && k < 100000; k += 1 + k / 24) {
        ready();
        restkv_status status = RESTKV_OK;
        bool          thrown = false;
        n_left               = k;
        try {
            status = restkv_recall(s.ctx, 0);
        } catch (...) {
            thrown = true;
        }
        n_left = -1;
        CHECK(!thrown);
        recalled = status == RESTKV_OK;
        restkv_stats stats;
        CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK);
        if (!recalled && stats.n_cells == 0) {
            n_lost++;
            right = right && s.feed(4) == 1;
            ready();
        } else if (!recalled) {
            n_whole++;
            right = right && stats.pos_next == s.pos;
        }
        right = right && (recalled || restkv_recall(s.ctx, 0) == RESTKV_OK);
        right = right && s.logits_after(6, n_vocab) == expected;
    }
    fprintf(stderr, "a recall, stages %d: %u as it was, %u lost\n", stages, n_whole, n_lost);
    CHECK(recalled && right && n_whole > 0);
    llama_free(s.ctx);
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    test_parallel();
    for (int i = 1; i < argc; ++i) {
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers       = 0;
        llama_model * model       = llama_model_load_from_file(argv[i], params);
        CHECK(model != nullptr);
        if (!model) {
            continue;
        }
        for (const uint8_t stages : { RESTKV_STAGES_FUSED, RESTKV_STAGES_GRAPH, RESTKV_STAGES_HOST }) {
            test_evict(model, argv[i], "restkv", stages, RESTKV_ALLOCATION_UNIFORM);
            test_evict(model, argv[i], "restkv", stages, RESTKV_ALLOCATION_ADA);
            test_evict(model, argv[i], "h2o", stages, RESTKV_ALLOCATION_UNIFORM);
            test_recall(model, argv[i], stages);
        }
        llama_model_free(model);
    }
    llama_backend_free();
    return restkv_report_checks();
}
