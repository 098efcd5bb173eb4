// What a layer of an archive may be, and how its rows get from one type to another.

#pragma once

#include "archive/store.h"

// No row is longer, so that a block of them always fits in memory: no model comes near.
constexpr size_t   RESTKV_ARCHIVE_ROW_MAX   = 1 << 20;
constexpr uint32_t RESTKV_ARCHIVE_LAYER_MAX = 4096;

// Throws restkv_error with RESTKV_INVALID: shapes or types that an archive cannot hold.
void restkv_check_archive_layer(const restkv_archive_layer & layer);

// Bytes of a row of all heads, of a layer that was checked.
size_t restkv_archive_row(const restkv_archive_layer & layer, bool value);

// a * b and a + b; throw restkv_error with RESTKV_INVALID where 63 bits do not hold the result, as no file can.
uint64_t restkv_archive_times(uint64_t a, uint64_t b);
uint64_t restkv_archive_plus(uint64_t a, uint64_t b);

// n values, a multiple of the block of either type. floats: n of them.
void restkv_convert_values(ggml_type from, const uint8_t * src, ggml_type to, uint8_t * dst, int64_t n, float * floats);
