#include "tests/cache.h"

#include "tests/check.h"
#include "tests/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

void test_rollback(llama_model * model, const char * path) {
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

// Load a damaged state: it is refused with a reason, or the cache works with it, also when it evicts.
static void load_damaged(session & s, const std::vector<uint8_t> & state) {
    llama_memory_clear(llama_get_memory(s.ctx), true);
    restkv_clear_error();
    const bool   loaded = llama_state_set_data(s.ctx, state.data(), state.size()) > 0;
    restkv_stats stats;
    CHECK(!loaded || restkv_last_status() == RESTKV_OK);
    CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK && stats.n_cells <= stats.capacity && stats.pos_next >= 0);
    if (loaded) {
        s.pos = stats.pos_next;
        for (int i = 0; i < 3; ++i) {
            s.feed(32);
        }
        CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK && stats.n_cells <= stats.capacity);
    }
}

// A state file may come from anywhere: any answer but a crash.
static void test_damaged_states(session & s, const std::vector<uint8_t> & state) {
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
        load_damaged(s, broken);
    }

    // numbers at the ends of their type, one at a time, where ours and llama.cpp's tables stand
    const char *   magic  = "RSTKVST";
    const auto     found  = std::search(state.begin(), state.end(), magic, magic + 7);
    const size_t   header = (size_t) (found - state.begin());
    const uint32_t odd[]  = { 0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FC00000, 0x7F800000, 0x3FFFFFFF };
    const auto     put    = [&](size_t at, uint32_t value) {
        std::vector<uint8_t> broken = state;
        memcpy(broken.data() + at, &value, sizeof(value));
        load_damaged(s, broken);
    };
    CHECK(found != state.end());
    uint32_t n_ring = 0;  // as state_header of cache/save.cpp has it
    memcpy(&n_ring, state.data() + header + 56, sizeof(n_ring));
    for (size_t at = header + 8; at < header + 80 + 4 * n_ring; at += 4) {
        put(at, odd[rng() % 8]);
    }
    for (int i = 0; i < 12; ++i) {
        put(header + 4 * (rng() % ((state.size() - header) / 4)), odd[rng() % 8]);
        put(4 + rng() % (std::min<size_t>(header, 2048) - 4), odd[rng() % 8]);
    }
    // First of all stands the length of a name. llama.cpp makes room for it, seconds for the largest, so that comes once.
    for (const uint32_t length : { 1u, 6u, 1u << 24 }) {
        put(0, length);
    }
    static bool largest = false;
    if (!largest) {
        largest = true;
        put(0, 0xFFFFFFFF);
    }

    // a query of the last position that there can be, in the row where it belongs
    if (n_ring == 0) {
        return;
    }
    std::vector<uint8_t> broken = state;
    const int32_t        last   = INT32_MAX;
    memcpy(broken.data() + header + 80 + 4 * (INT32_MAX % n_ring), &last, sizeof(last));
    llama_memory_clear(llama_get_memory(s.ctx), true);
    CHECK(llama_state_set_data(s.ctx, broken.data(), broken.size()) == 0);
    CHECK(restkv_last_status() == RESTKV_STATE && strstr(restkv_last_error(), "queries are out of order") != nullptr);
}

void test_states(llama_model * model, const char * path, const char * method, ggml_type type, int32_t allocation) {
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

    // another window: the cells of the window are kept whatever their scores are
    session       d;
    restkv_params wide = settings(method);
    wide.window += 2;
    open(d, model, path, wide, type, allocation);
    if (d.ctx) {
        CHECK(llama_state_set_data(d.ctx, state.data(), state.size()) == 0);
        CHECK(restkv_last_status() == RESTKV_STATE && strstr(restkv_last_error(), "window") != nullptr);
    }

    test_damaged_states(b, state);
    llama_memory_clear(llama_get_memory(b.ctx), true);
    b.pos = 0;
    CHECK(b.feed(10) == 0);
}

void test_votes(llama_model * model, const char * path) {
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
