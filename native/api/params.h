// Settings: what the C API and the cache share, without llama.cpp.

#pragma once

#include "api/status.h"
#include "restkv.h"

// Queries that are remembered.
inline uint32_t restkv_ring_rows(const restkv_params & params) {
    return params.n_ring > params.window ? params.n_ring : params.window;
}

// RESTKV_OK, or RESTKV_INVALID with a sentence.
restkv_status restkv_check_params(const restkv_params & params);
