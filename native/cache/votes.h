// Method h2o: every query votes once for the cells that it attends to. Votes are counted before the ring overwrites a
// query and before an eviction, so all queries of a text have a say, and the ring stays small. A cell's votes move with
// it. What is cut from the text's end takes no votes back; the tokens of a guide vote like any others.

#pragma once

#include "cache/core.h"

#include "ggml-backend.h"

// The queries in the ring vote that have not yet. Nothing may be under way. Throws before the first vote is counted, and
// leaves `votes_lost` after it. No-op for other methods.
void restkv_vote(restkv_core & core, ggml_backend_sched_t sched);

// The same before positions pos[n] overwrite queries that have not voted. Runs where nothing can be returned and nothing
// may be thrown.
void restkv_vote_before(restkv_core & core, ggml_backend_sched_t sched, const llama_pos * pos, uint32_t n) noexcept;
