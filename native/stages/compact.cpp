#include "stages/compact.h"

#include <cstring>

void restkv_move_rows(uint8_t * rows, size_t stride, size_t n_bytes, const int32_t * src, uint32_t n, int64_t to) {
    const auto row = [&](int64_t i) { return rows + i * (int64_t) stride; };
    // No row is overwritten before it is read: source and destination both ascend, so one that moves down overwrites only
    // what came before it, and one that moves up only what moves up after it.
    for (int64_t i = 0; i < n; ++i) {
        if (src[i] > to + i) {
            memmove(row(to + i), row(src[i]), n_bytes);
        }
    }
    for (int64_t i = (int64_t) n - 1; i >= 0; --i) {
        if (src[i] < to + i) {
            memmove(row(to + i), row(src[i]), n_bytes);
        }
    }
}
