// Products of floats on backends that round their factors, and rows of a cache as factors.

#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdint>

// Whether a device multiplies matrices of floats as floats. Most GPUs round them to F16 or TF32, of 11 bits. It is tried
// once per device. Throws restkv_error.
bool restkv_multiplies_exactly(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft);

// A factor of a product. On a device that rounds factors, coarse has digits that it keeps and fine is FINE times the rest;
// else, and where there is no rest, fine is null.
struct restkv_factor {
    ggml_tensor * coarse;
    ggml_tensor * fine;
};

// from: the type that x was made of; what was F16 has nothing that F16 leaves. exact: the device rounds nothing.
restkv_factor restkv_factor_of(ggml_context * ctx, ggml_tensor * x, ggml_type from, bool exact);

// a' b, summed in floats.
ggml_tensor * restkv_product(ggml_context * ctx, const restkv_factor & a, const restkv_factor & b);

// Rows [first, first + n) of a cache as floats [d, n, n_heads], of the KV heads from `head` on. Row of it: [n_head_kv][d].
ggml_tensor * restkv_rows_of(ggml_context * ctx, ggml_tensor * cache, uint32_t d, uint32_t n_head_kv, uint32_t head,
                             uint32_t n_heads, uint32_t first, uint32_t n);

// Compute a graph whose tensors have memory: queued where the backend can.
ggml_status restkv_compute(ggml_backend_t backend, ggml_cgraph * gf);

// Memory for all tensors of a context. Throws restkv_error, which names `what` it was for.
ggml_backend_buffer_ptr restkv_allocate(ggml_context * ctx, ggml_backend_buffer_type_t buft, const char * what);
