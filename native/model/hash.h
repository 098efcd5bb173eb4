// A hash of bytes for keys and checks of our own files. It tells apart what differs by chance, not what an attacker made.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// h: a seed, or the hash of what comes before.
inline uint64_t restkv_hash(const void * data, size_t n, uint64_t h) {
    const uint8_t * p = (const uint8_t *) data;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t x;
        memcpy(&x, p, 8);
        h = (h ^ x) * 0x9E3779B97F4A7C15ull;
        h ^= h >> 29;
    }
    for (; n > 0; --n, ++p) {
        h = (h ^ *p) * 0x100000001B3ull;
    }
    return h ^ (h >> 32);
}
