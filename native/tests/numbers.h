// Random numbers and sizes of the tests of the stages. Sizes sit at and around the block sizes.

#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

inline std::mt19937 rng(7);

inline std::vector<float> normal(size_t n) {
    std::normal_distribution<float> d;
    std::vector<float>              x(n);
    for (float & v : x) {
        v = d(rng);
    }
    return x;
}

inline bool close(double a, double b, double tolerance) {
    return std::fabs(a - b) <= tolerance * (1.0 + std::fabs(b));
}

inline const uint32_t SIZES[] = { 1, 2, 15, 16, 17, 31, 32, 33, 63, 100, 255, 257, 1023, 1025 };
