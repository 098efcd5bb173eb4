// Contexts that evict, and a text that depends on nothing but positions.

#pragma once

#include "llama.h"
#include "restkv.h"

#include <vector>

// Small budgets and every option of a method at work.
restkv_params settings(const char * method);

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

// Makes the context of a session; on failure it is null.
void open(session & s, llama_model * model, const char * path, const restkv_params & params, ggml_type type,
          int32_t allocation = RESTKV_ALLOCATION_UNIFORM, const restkv_archive_params * archive = nullptr);
