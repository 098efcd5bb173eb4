// An archive beside the cells, in memory and in a file: reading with recall, questions, cuts, and a file that is damaged.

#include "tests/cache.h"
#include "tests/check.h"
#include "tests/session.h"

#include <cstdio>
#include <cstring>
#include <string>

static restkv_archive_params archive_at(const char * path, int32_t type) {
    restkv_archive_params a = {};
    a.place                 = path ? RESTKV_PLACE_FILE : RESTKV_PLACE_RAM;
    a.type_k                = type;
    a.type_v                = type;
    a.n_ctx                 = 4096;
    a.path                  = path;
    a.n_rows                = 5;
    a.kernel                = 7;
    a.sinks                 = 4;
    a.n_guide               = 16;
    return a;
}

// A chunk that recalls for itself; returns the status of its recalls.
static restkv_status read(session & s, int32_t n) {
    restkv_stats stats;
    CHECK(restkv_set_reading(s.ctx, true, 0.0f) == RESTKV_OK);
    CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK);
    if (stats.n_free < (uint32_t) n) {
        CHECK(restkv_evict(s.ctx, 0) == RESTKV_OK);
    }
    CHECK(s.feed(n) == 0);
    return restkv_set_reading(s.ctx, false, 0.0f);
}

static restkv_archive_stats archive_of(const session & s) {
    restkv_archive_stats stats;
    CHECK(restkv_get_archive(s.ctx, &stats) == RESTKV_OK);
    return stats;
}

// Every byte from the middle of a file on is another one.
static void damage(const char * path) {
    FILE * file = fopen(path, "r+b");
    CHECK(file != nullptr);
    if (!file) {
        return;
    }
    fseek(file, 0, SEEK_END);
    const long n = ftell(file);
    for (long at = n / 8; at < n; at += 16) {
        fseek(file, at, SEEK_SET);
        const int byte = fgetc(file);
        fseek(file, at, SEEK_SET);
        fputc(byte ^ 0x5a, file);
    }
    fclose(file);
}

static void test_archive(llama_model * model, const char * path, const char * file, ggml_type cache, int32_t type,
                         uint8_t stages) {
    const restkv_archive_params archive = archive_at(file, type);
    restkv_params               params  = settings("restkv");
    params.stages                       = stages;
    session s;
    open(s, model, path, params, cache, RESTKV_ALLOCATION_UNIFORM, &archive);
    CHECK(s.ctx != nullptr);
    if (!s.ctx) {
        fprintf(stderr, "%s\n", restkv_last_error());
        return;
    }
    CHECK(restkv_set_reading(s.ctx, true, 1.5f) == RESTKV_INVALID);
    const restkv_archive_stats made = archive_of(s);
    restkv_stats               stats;
    CHECK(made.n_layer_graph == (stages == RESTKV_STAGES_GRAPH ? made.n_layer : 0));
    CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK);
    const uint64_t bytes_graph = stats.bytes_graph;
    CHECK(restkv_recall(s.ctx, 0) == RESTKV_NOTHING);
    for (int i = 0; i < 16; ++i) {
        CHECK(read(s, 1 + i * 5 % 16) == RESTKV_OK);
    }
    CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK);
    CHECK(stats.n_evictions > 0 && stats.pos_next == s.pos && archive_of(s).n_rows == (uint32_t) stats.pos_exact);
    check_kept(s, stats, model);

    // a question, longer than what is remembered of it; an answer with an eviction in it; a recall by the answer
    const llama_pos end = s.pos;
    if (stats.n_free < 20) {
        CHECK(restkv_evict(s.ctx, 0) == RESTKV_OK);
    }
    CHECK(s.feed(20) == 0);
    CHECK(restkv_recall(s.ctx, 20) == RESTKV_OK);
    s.pos = end;
    CHECK(archive_of(s).n_rows == (uint32_t) end);
    for (int i = 0; i < 60; ++i) {
        CHECK(s.feed(1) == 0);
    }
    CHECK(restkv_recall(s.ctx, 0) == RESTKV_OK);
    CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK);
    CHECK(stats.n_cells == stats.budget && stats.pos_exact == s.pos);
    check_kept(s, stats, model);
    CHECK(stats.bytes_graph == bytes_graph);  // taken when the context was made

    // no state has an archive in it
    CHECK(llama_state_get_size(s.ctx) == 0 && restkv_last_status() == RESTKV_UNSUPPORTED);

    // a cut anywhere, but for what a sliding window has lost
    llama_memory_t memory = llama_get_memory(s.ctx);
    for (const llama_pos p0 : { end + 3, end - 7, (llama_pos) stats.budget, (llama_pos) 5 }) {
        const bool cut = llama_memory_seq_rm(memory, 0, p0, -1);
        CHECK(cut || (llama_model_n_swa(model) > 0 && restkv_last_status() == RESTKV_GONE));
        s.pos = cut ? p0 : s.pos;
        CHECK(archive_of(s).n_rows <= (uint32_t) s.pos);
        CHECK(read(s, 11) == RESTKV_OK);
        CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK);
        CHECK(stats.pos_next == s.pos);
        check_kept(s, stats, model);
    }
    CHECK(llama_memory_seq_rm(memory, 0, -1, -1));
    CHECK(archive_of(s).n_rows == 0);
    s.pos = 0;
}

// Nothing is answered from damaged rows, and what is in the cells goes on.
static void test_damage(llama_model * model, const char * path, const char * file, uint8_t stages) {
    const restkv_archive_params archive = archive_at(file, -1);
    restkv_params               params  = settings("restkv");
    params.stages                       = stages;
    session s;
    open(s, model, path, params, GGML_TYPE_F16, RESTKV_ALLOCATION_UNIFORM, &archive);
    CHECK(s.ctx != nullptr);
    for (int i = 0; s.ctx && i < 20; ++i) {
        CHECK(read(s, 16) == RESTKV_OK);
    }
    if (!s.ctx) {
        return;
    }
    damage(file);
    const llama_pos end = s.pos;
    CHECK(read(s, 12) == RESTKV_ARCHIVE && strstr(restkv_last_error(), file) != nullptr);
    CHECK(llama_memory_seq_rm(llama_get_memory(s.ctx), 0, end, -1));
    s.pos = end;

    CHECK(restkv_recall(s.ctx, 0) == RESTKV_ARCHIVE);
    restkv_stats stats;
    CHECK(restkv_get_stats(s.ctx, &stats) == RESTKV_OK);
    CHECK(stats.pos_next == end && stats.n_cells <= stats.capacity);
    check_kept(s, stats, model);
    for (int i = 0; i < 30; ++i) {
        CHECK(s.feed(1) == 0);
    }
}

static void test_arming(const char * path) {
    const restkv_params p = settings("restkv");
    CHECK(restkv_arm_archive(nullptr) == RESTKV_INVALID);
    for (int i = 0; i < 6; ++i) {
        restkv_archive_params a = archive_at(nullptr, -1);
        a.place                 = i == 0 ? 7 : i == 1 ? RESTKV_PLACE_FILE : a.place;
        a.type_v                = i == 2 ? GGML_TYPE_F32 : a.type_v;
        a.kernel                = i == 3 ? 4 : a.kernel;
        a.sinks                 = i == 4 ? UINT32_MAX : a.sinks;
        a.n_ctx                 = i == 5 ? 0 : a.n_ctx;
        CHECK(restkv_arm(&p, path, nullptr) == RESTKV_OK);
        CHECK(restkv_arm_archive(&a) == RESTKV_INVALID && restkv_last_error()[0] != '\0');
        restkv_disarm();
    }
}

void test_recall(llama_model * model, const char * path) {
    const std::string file = std::string(path) + ".archive";
    test_arming(path);
    test_archive(model, path, nullptr, GGML_TYPE_F16, -1, RESTKV_STAGES_GRAPH);
    test_archive(model, path, nullptr, GGML_TYPE_F16, GGML_TYPE_Q8_0, RESTKV_STAGES_FUSED);
    test_archive(model, path, file.c_str(), GGML_TYPE_Q8_0, -1, RESTKV_STAGES_FUSED);
    test_archive(model, path, file.c_str(), GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, RESTKV_STAGES_GRAPH);
    test_damage(model, path, file.c_str(), RESTKV_STAGES_FUSED);
    test_damage(model, path, file.c_str(), RESTKV_STAGES_GRAPH);
    remove(file.c_str());
}
