// The whole path inside llama_decode, on the model files given as arguments: evictions, guides, refusals, states, also
// damaged ones. Answers are checked by the Python tests; this program is for the sanitizers and for what must not crash.

#include "tests/check.h"

#include "llama.h"
#include "restkv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

static restkv_params settings(const char * method) {
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

struct session {
    llama_context * ctx = nullptr;
    llama_pos       pos = 0;

    ~session() { llama_free(ctx); }

    // n tokens that depend on nothing but their position; returns llama_decode's status
    int feed(int32_t n) {
        std::vector<llama_token> tokens(n);
        for (int32_t i = 0; i < n; ++i) {
            tokens[i] = 5 + (pos + i) * 7 % 40;
        }
        const int status = llama_decode(ctx, llama_batch_get_one(tokens.data(), n));
        pos += status == 0 ? n : 0;
        return status;
    }

    std::vector<float> logits(int32_t n_vocab) const {
        const float * x = llama_get_logits_ith(ctx, -1);
        return std::vector<float>(x, x + n_vocab);
    }
};

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

static void open(session & s, llama_model * model, const char * path, const restkv_params & params, ggml_type type,
                 int32_t allocation = RESTKV_ALLOCATION_UNIFORM) {
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
    s.ctx = llama_init_from_model(model, p);
    restkv_disarm();
}

// A ladder needs two layers that evict: a model with one is refused with a sentence.
static bool has_rungs(llama_model * model, const char * path, const char * method) {
    if (strcmp(method, "lacache") != 0 || llama_model_n_swa(model) == 0) {
        return true;
    }
    llama_context_params c = llama_context_default_params();
    c.n_ctx                = 256;
    c.flash_attn_type      = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    const restkv_params p  = settings(method);
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_OK);
    llama_context * ctx = llama_init_from_model(model, c);
    restkv_disarm();
    const bool works = ctx != nullptr;
    llama_free(ctx);
    CHECK(works || strstr(restkv_last_error(), "ladder over 1 layers") != nullptr);
    return works;
}

static void check_kept(session & s, const restkv_stats & stats, llama_model * model) {
    uint32_t n_seen = 0;
    for (int32_t il = 0; il < llama_model_n_layer(model); ++il) {
        for (uint32_t h = 0; h < stats.n_head_kv; ++h) {
            const int32_t n = restkv_kept(s.ctx, il, h, nullptr, 0);
            if (n < 0) {
                continue;
            }
            std::vector<int32_t> kept(n);
            CHECK(restkv_kept(s.ctx, il, h, kept.data(), n) == n);
            n_seen++;
            bool ascending = kept.front() >= 0;
            for (size_t i = 1; i < kept.size(); ++i) {
                ascending = ascending && kept[i] > kept[i - 1];
            }
            CHECK(ascending && kept.back() == stats.pos_next - 1);
        }
    }
    CHECK(n_seen > 0);
}

static void test_text(llama_model * model, const char * path, const char * method, ggml_type type,
                      restkv_stages stages = RESTKV_STAGES_AUTO, int32_t allocation = RESTKV_ALLOCATION_UNIFORM) {
    session       s;
    restkv_params params = settings(method);
    params.stages        = (uint8_t) stages;
    open(s, model, path, params, type, allocation);
    if (!s.ctx && allocation == RESTKV_ALLOCATION_ADA && strstr(path, "gpt-oss")) {
        CHECK(strstr(restkv_last_error(), "attention sinks") != nullptr);
        return;
    }
    CHECK(s.ctx != nullptr);
    if (!s.ctx) {
        fprintf(stderr, "%s\n", restkv_last_error());
        return;
    }
    for (int i = 0; i < 12; ++i) {
        CHECK(s.feed(1 + i * 5 % 32) == 0);
    }
    for (int i = 0; i < 60; ++i) {
        CHECK(s.feed(1) == 0);
    }
    restkv_stats stats;
    CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK);
    CHECK(stats.n_evictions > 1 && stats.n_cells <= stats.capacity && stats.pos_next == s.pos);
    check_kept(s, stats, model);

    // a guide scores and is forgotten
    while (stats.n_cells <= stats.budget + 10) {
        CHECK(s.feed(5) == 0);
        restkv_get_stats(s.ctx, &stats);
    }
    const llama_pos end = s.pos;
    CHECK(s.feed(6) == 0);
    const restkv_status status = restkv_evict(s.ctx, 6);
    CHECK(status == RESTKV_OK);
    CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK);
    CHECK(stats.n_cells == stats.budget && stats.pos_next == end);
    CHECK(restkv_evict(s.ctx, 0) == RESTKV_NOTHING);
    s.pos = end;
    CHECK(s.feed(3) == 0);

    // removal: exact from the last eviction on, refused before it
    llama_memory_t memory = llama_get_memory(s.ctx);
    CHECK(!llama_memory_seq_rm(memory, 0, end - 5, -1));
    CHECK(restkv_last_status() == RESTKV_GONE && strstr(restkv_last_error(), "read the text again") != nullptr);
    CHECK(llama_memory_seq_rm(memory, 0, end + 1, -1));
    s.pos = end + 1;
    CHECK(s.feed(2) == 0);
    CHECK(!llama_memory_can_shift(memory));
    llama_memory_seq_cp(memory, 0, 0, 0, -1);

    // from the start again
    CHECK(llama_memory_seq_rm(memory, 0, -1, -1));
    s.pos = 0;
    for (int i = 0; i < 10; ++i) {
        CHECK(s.feed(32) == 0);
    }
    restkv_get_stats(s.ctx, &stats);
    check_kept(s, stats, model);

    restkv_event events[4];
    CHECK(restkv_get_events(s.ctx, events, 4) == 4);
    CHECK(events[3].n_kept == stats.budget);
    CHECK((events[3].n_layer_graph > 0) == (stages == RESTKV_STAGES_GRAPH) && stats.reason[0] == '\0');
    CHECK((events[3].n_layer_host > 0) == (stages == RESTKV_STAGES_HOST));
}

// Going back is exact or refused: a sliding window that has been overwritten does not come back.
static void test_rollback(llama_model * model, const char * path) {
    restkv_params p = settings("restkv");
    p.budget        = 1024;  // nothing is evicted
    p.capacity      = 2048;
    session a, b;
    open(a, model, path, p, GGML_TYPE_F16);
    open(b, model, path, p, GGML_TYPE_F16);
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (int i = 0; i < 28; ++i) {
        CHECK(a.feed(32) == 0);
    }
    for (const llama_pos to : { 890, 600, 320 }) {
        llama_memory_clear(llama_get_memory(b.ctx), true);
        for (b.pos = 0; b.pos < to;) {
            CHECK(b.feed(std::min(32, to - b.pos)) == 0);
        }
        if (!llama_memory_seq_rm(llama_get_memory(a.ctx), 0, to, -1)) {
            CHECK(llama_model_n_swa(model) > 0 && strstr(restkv_last_error(), "sliding window") != nullptr);
            continue;
        }
        a.pos = to;
        CHECK(a.feed(4) == 0 && b.feed(4) == 0);
        const std::vector<float> x = a.logits(n_vocab), y = b.logits(n_vocab);
        float                    error = 0.0f;
        for (int32_t i = 0; i < n_vocab; ++i) {
            error = std::max(error, std::fabs(x[i] - y[i]));
        }
        CHECK(error < 0.1f);
    }
}

static void test_states(llama_model * model, const char * path, const char * method, ggml_type type,
                        int32_t allocation = RESTKV_ALLOCATION_UNIFORM) {
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    session       a;
    open(a, model, path, settings(method), type, allocation);
    if (!a.ctx) {
        CHECK(allocation == RESTKV_ALLOCATION_ADA && strstr(path, "gpt-oss") != nullptr);
        return;
    }
    for (int i = 0; i < 7; ++i) {
        CHECK(a.feed(29) == 0);
    }
    std::vector<uint8_t> state(llama_state_get_size(a.ctx));
    state.resize(llama_state_get_data(a.ctx, state.data(), state.size()));
    CHECK(!state.empty());
    const llama_pos saved = a.pos;
    for (int i = 0; i < 80; ++i) {
        CHECK(a.feed(1) == 0);
    }
    const std::vector<float> expected = a.logits(n_vocab);

    session b;
    open(b, model, path, settings(method), type, allocation);
    CHECK(llama_state_set_data(b.ctx, state.data(), state.size()) == state.size());
    b.pos = saved;
    for (int i = 0; i < 80; ++i) {
        CHECK(b.feed(1) == 0);
    }
    // bit for bit with full attention only; the cells of a sliding window come back in another order
    const std::vector<float> got   = b.logits(n_vocab);
    float                    error = 0.0f;
    for (int32_t i = 0; i < n_vocab; ++i) {
        error = std::max(error, std::fabs(got[i] - expected[i]));
    }
    CHECK(error <= (llama_model_n_swa(model) > 0 ? 0.05f : 0.0f));

    // another budget: refused, and the context still works
    session       c;
    restkv_params small = settings(method);
    small.budget        = 24;
    small.capacity      = 64;
    open(c, model, path, small, type, allocation);
    CHECK(llama_state_set_data(c.ctx, state.data(), state.size()) == 0);
    CHECK(c.feed(20) == 0);

    // damaged states: any answer but a crash
    std::mt19937 rng(3);
    for (int i = 0; i < 40; ++i) {
        std::vector<uint8_t> broken = state;
        if (i % 2) {
            broken.resize(rng() % broken.size());
        } else {
            for (int k = 0; k < 20; ++k) {
                // mostly near the end, where our tables stand
                const size_t from = k % 2 ? broken.size() / 2 : 0;
                broken[from + rng() % (broken.size() - from)] ^= (uint8_t) (1 + rng() % 255);
            }
        }
        llama_memory_clear(llama_get_memory(b.ctx), true);
        if (llama_state_set_data(b.ctx, broken.data(), broken.size()) > 0) {
            restkv_stats stats;
            CHECK(restkv_get_stats(b.ctx, &stats) == RESTKV_OK);
            CHECK(stats.n_cells <= stats.capacity);
        }
    }
    llama_memory_clear(llama_get_memory(b.ctx), true);
    b.pos = 0;
    CHECK(b.feed(10) == 0);
}

// Votes of method h2o: cut at the end, read again, and a state of another method.
static void test_votes(llama_model * model, const char * path) {
    session a;
    open(a, model, path, settings("h2o"), GGML_TYPE_F16);
    for (int i = 0; i < 5; ++i) {
        CHECK(a.feed(31) == 0);
    }
    restkv_stats stats;
    CHECK(restkv_get_stats(a.ctx, &stats) == RESTKV_OK);
    CHECK(stats.bytes_sums == (uint64_t) stats.n_layer * stats.n_head_kv * stats.capacity * sizeof(float));
    llama_memory_t memory = llama_get_memory(a.ctx);
    if (llama_memory_seq_rm(memory, 0, a.pos - 3, -1)) {
        a.pos -= 3;
    }
    CHECK(restkv_evict(a.ctx, 0) == RESTKV_OK);
    for (int i = 0; i < 90; ++i) {
        CHECK(a.feed(1) == 0);
    }
    restkv_event event;
    CHECK(restkv_get_events(a.ctx, &event, 1) == 1 && event.n_rows > 0);

    std::vector<uint8_t> state(llama_state_get_size(a.ctx));
    state.resize(llama_state_get_data(a.ctx, state.data(), state.size()));
    session b;
    open(b, model, path, settings("restkv"), GGML_TYPE_F16);
    CHECK(llama_state_set_data(b.ctx, state.data(), state.size()) == 0);
    CHECK(b.feed(20) == 0);
}

static void test_refusals(llama_model * model, const char * path) {
    restkv_params p = settings("restkv");
    p.capacity      = p.budget;
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_INVALID);
    p        = settings("restkv");
    p.window = 0;
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_INVALID);
    p      = settings("restkv");
    p.rows = RESTKV_ROWS_SUM;
    CHECK(restkv_arm(&p, path, nullptr) == RESTKV_INVALID);
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

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    for (int i = 1; i < argc; ++i) {
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers       = 0;
        llama_model * model       = llama_model_load_from_file(argv[i], params);
        CHECK(model != nullptr);
        if (!model) {
            continue;
        }
        fprintf(stderr, "%s\n", argv[i]);
        for (uint32_t m = 0; m < restkv_method_count(); ++m) {
            if (has_rungs(model, argv[i], restkv_method_name(m))) {
                test_text(model, argv[i], restkv_method_name(m), GGML_TYPE_F16);
            }
        }
        test_text(model, argv[i], "restkv", GGML_TYPE_Q8_0);
        test_text(model, argv[i], "restkv", GGML_TYPE_F16, RESTKV_STAGES_GRAPH);
        test_text(model, argv[i], "snapkv", GGML_TYPE_Q8_0, RESTKV_STAGES_GRAPH);
        test_text(model, argv[i], "random", GGML_TYPE_F16, RESTKV_STAGES_GRAPH);
        test_text(model, argv[i], "restkv", GGML_TYPE_F16, RESTKV_STAGES_HOST);
        test_rollback(model, argv[i]);
        for (const char * method : { "restkv", "h2o", "lacache" }) {  // those with more or less to save
            if (has_rungs(model, argv[i], method)) {
                test_states(model, argv[i], method, GGML_TYPE_F16);
            }
        }
        test_votes(model, argv[i]);
        for (const int32_t allocation : { RESTKV_ALLOCATION_PYRAMID, RESTKV_ALLOCATION_ADA }) {
            for (const char * method : { "restkv", "snapkv", "keydiff", "knorm" }) {
                test_text(model, argv[i], method, GGML_TYPE_F16, RESTKV_STAGES_AUTO, allocation);
            }
            test_text(model, argv[i], "random", GGML_TYPE_Q8_0, RESTKV_STAGES_AUTO, allocation);
            test_text(model, argv[i], "restkv", GGML_TYPE_F16, RESTKV_STAGES_HOST, allocation);
            test_text(model, argv[i], "restkv", GGML_TYPE_F16, RESTKV_STAGES_GRAPH, allocation);
            test_states(model, argv[i], "restkv", GGML_TYPE_F16, allocation);
        }
        test_refusals(model, argv[i]);
        llama_model_free(model);
    }
    llama_backend_free();
    return restkv_report_checks();
}
