// The whole path inside llama_decode, on the model files given as arguments: evictions, guides, refusals, states, also
// damaged ones. Answers are checked by the Python tests; this program is for the sanitizers and for what must not crash.

#include "tests/cache.h"

#include "tests/check.h"
#include "tests/session.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

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

void check_kept(session & s, const restkv_stats & stats, llama_model * model) {
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

// What the last queries look at: something, of each position at most everything.
static void check_look(session & s, const restkv_stats & stats) {
    std::vector<float>  weights(stats.pos_next, 0.0f);
    uint32_t            n_looked = 0;
    const restkv_status status   = restkv_look(s.ctx, 5, weights.data(), (uint32_t) stats.pos_next, &n_looked);
    if (status == RESTKV_UNSUPPORTED) {
        CHECK(strstr(restkv_last_error(), "keeps no queries") != nullptr);
        return;
    }
    CHECK(status == RESTKV_OK && n_looked == 5);
    const float largest = *std::max_element(weights.begin(), weights.end());
    CHECK(largest > 0.0f && largest <= 1.001f && *std::min_element(weights.begin(), weights.end()) >= 0.0f);
    CHECK(restkv_look(s.ctx, UINT32_MAX, weights.data(), 1, nullptr) == RESTKV_OK);  // as many as there are
    CHECK(restkv_look(s.ctx, 1, nullptr, 1, nullptr) == RESTKV_INVALID);
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
    check_look(s, stats);

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
        test_recall(model, argv[i]);
        test_refusals(model, argv[i]);
        llama_model_free(model);
    }
    llama_backend_free();
    return restkv_report_checks();
}
