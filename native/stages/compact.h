// Last stage of an eviction: the survivors move to the first cells, as raw bytes, whatever their type.

#pragma once

#include <cstddef>
#include <cstdint>

// Row src[i] of a KV head moves to row to + i; src ascends. rows: first byte of the head in cell 0; stride: bytes from
// cell to cell; `to` may lie before that cell.
void restkv_move_rows(uint8_t * rows, size_t stride, size_t n_bytes, const int32_t * src, uint32_t n, int64_t to = 0);
