// What the last queries look at, among the cells of all layers that evict.

#pragma once

#include "cache/core.h"

// As restkv_look() in restkv.h. Layers are looked at one after the other. Returns how many queries there were. Throws
// restkv_error.
uint32_t restkv_look_at(const restkv_core & core, uint32_t n_rows, float * weights, uint32_t n);
