// Parts of the tests of the cache, each on one model file.

#pragma once

#include "llama.h"
#include "restkv.h"

struct session;

// Going back is exact or refused: a sliding window that has been overwritten does not come back.
void test_rollback(llama_model * model, const char * path);

// A saved state goes on bit for bit; one of another budget is refused, a damaged one does not crash.
void test_states(llama_model * model, const char * path, const char * method, ggml_type type,
                 int32_t allocation = RESTKV_ALLOCATION_UNIFORM);

// Votes of method h2o: cut at the end, read again, and a state of another method.
void test_votes(llama_model * model, const char * path);

// The heads' positions are ascending and end with the text.
void check_kept(session & s, const restkv_stats & stats, llama_model * model);

// An archive: reading with recall, questions, cuts, damage.
void test_recall(llama_model * model, const char * path);

void test_refusals(llama_model * model, const char * path);
