// Keys or values of some cells as floats, turned so that the loops run over cells.

#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>

// panel[x * ld + j] = value x of row j, zeros for n <= j < restkv_pad(n). row: d floats of work memory.
void restkv_load_panel(const uint8_t * rows, size_t stride, ggml_type type, uint32_t n, uint32_t d, float * panel,
                       size_t ld, float * row);

// A broken model or state must not spread: a logit that is no number gets no attention.
void restkv_drop_non_finite(float * z, uint32_t n);
