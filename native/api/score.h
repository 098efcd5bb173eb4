// What the ways to score host arrays share: restkv_score() and restkv_score_on().

#pragma once

#include "restkv.h"
#include "stages/stages.h"

#include <vector>

// Whether a cache of KV heads of this size can have this ggml type.
bool restkv_is_kv_type(int32_t type, uint32_t n_embd_head);

// RESTKV_OK, or RESTKV_INVALID with a sentence.
restkv_status restkv_check_score(const restkv_score_args & args, const restkv_score_out & out);

// [n_head][d][d] upper factors of W_o; empty when they are not used
std::vector<float> restkv_score_factors(const restkv_score_args & args);

// Whether the drift of a KV head is measured. With positions, as in the cache: not while they all lie within one step.
bool restkv_score_drifts(const restkv_score_args & args, const int32_t * pos);

// Copy the scores and the choice of one KV head out of `scratch`. selected: [n_past] of scratch.
void restkv_score_take(const restkv_score_args & args, uint32_t head_kv, const restkv_scratch & scratch,
                       std::vector<int32_t> & selected, const restkv_score_out & out);
