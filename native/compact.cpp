#include "compact.h"

#include <cstring>

void restkv_move_rows(uint8_t * rows, size_t stride, size_t n_bytes, const int32_t * src, uint32_t n) {
    uint32_t i = 0;
    while (i < n && src[i] == (int32_t) i) {
        ++i;  // already in place
    }
    // a row is never overwritten before it is read: src[i] >= i and ascending
    for (; i < n; ++i) {
        memmove(rows + i * stride, rows + (size_t) src[i] * stride, n_bytes);
    }
}
