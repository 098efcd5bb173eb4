// The inner loops of the CPU stages. kernels.cpp is compiled once per instruction set; the best one is found at run time.
//
// Panels are transposed: value k of cell j at panel[k * ld + j], ld a multiple of RESTKV_LANES and the cells up to ld
// readable (zeros), so that the loops run over cells without a tail.

#pragma once

#include <cstddef>
#include <cstdint>

constexpr uint32_t RESTKV_LANES = 32;  // cells handled at a time by every instruction set

inline uint32_t restkv_pad(uint32_t n) {
    return (n + RESTKV_LANES - 1) / RESTKV_LANES * RESTKV_LANES;
}

struct restkv_kernels {
    const char * isa;

    // panel[k * ld + j] = rows[j * d + k] for j < n; zero for n <= j < restkv_pad(n)
    void (*transpose)(const float * rows, uint32_t n, uint32_t d, float * panel, size_t ld);
    void (*transpose_f16)(const uint8_t * rows, size_t row_stride, uint32_t n, uint32_t d, float * panel, size_t ld);

    // out[r * ldo + j] = sum_k a[r * d + k] * panel[k * ld + j], j < restkv_pad(n)
    void (*matmul)(const float * a, uint32_t n_rows, uint32_t d, const float * panel, size_t ld, uint32_t n,
                   float * out, size_t ldo);

    // out[j] = sum_r (sum_{k >= r} upper[r * d + k] * (o[k] - panel[k * ld + j]))^2. upper: zeros below the diagonal;
    // null: identity
    void (*distance2)(const float * upper, const float * o, uint32_t d, const float * panel, size_t ld, uint32_t n,
                      float * out);

    float (*dot)(const float * a, const float * b, uint32_t n);

    // y += w * x
    void (*axpy)(float w, const float * x, uint32_t n, float * y);

    // z = cap * tanh(z / cap)
    void (*softcap)(float * z, uint32_t n, float cap);

    // index of the largest (first of equals)
    uint32_t (*argmax)(const float * z, uint32_t n);

    // z = exp(z - max); returns the sum without cell `skip`
    double (*exp_sum)(float * z, uint32_t n, float max, uint32_t skip);

    // sum of pos over the n_top largest of z (ties: lower index first). bins: n values of scratch.
    int64_t (*top_pos_sum)(const float * z, const int32_t * pos, uint32_t n, uint32_t n_top, uint16_t * bins);
};

const restkv_kernels * restkv_cpu_kernels();
