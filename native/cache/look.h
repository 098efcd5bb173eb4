// What the last queries look at, among the cells of all layers that evict.

#pragma once

#include "cache/core.h"

// weights[p], of the positions p < n: raised to the largest attention that a query head of any layer pays to p in a row of
// the window. Layers are looked at one after the other; of cells on a device one layer's keys are copied at a time.
// Throws restkv_error where a layer keeps no queries.
void restkv_look_at(const restkv_core & core, const restkv_sequence::window & window, float * weights, uint32_t n);
