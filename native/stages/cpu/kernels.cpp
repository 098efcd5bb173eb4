// One instruction set's kernels: RESTKV_ISA names it, the compiler flags choose it. See kernels.h for the contracts.

#include "stages/cpu/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#if defined(__F16C__) || defined(__AVX512F__)
#    include <immintrin.h>
#endif

#define RESTKV_CAT_(a, b) a##b
#define RESTKV_CAT(a, b)  RESTKV_CAT_(a, b)
#define RESTKV_STR_(a)    #a
#define RESTKV_STR(a)     RESTKV_STR_(a)

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, BLOCK_ROWS = 8;
#elif defined(__AVX2__)
constexpr int W = 8, BLOCK_ROWS = 4;
#else
constexpr int W = 4, BLOCK_ROWS = 4;
#endif
constexpr int NV = 2;  // vectors of cells per block

typedef float    vec_t __attribute__((vector_size(W * 4)));
typedef float    vecu_t __attribute__((vector_size(W * 4), aligned(4)));
typedef int32_t  veci_t __attribute__((vector_size(W * 4)));
typedef uint32_t bits_t __attribute__((vector_size(W * 4)));

static_assert(RESTKV_LANES % (W * NV) == 0, "a block of cells must divide the padding");

inline vec_t load(const float * p) {
    return *(const vecu_t *) p;
}

inline void store(float * p, vec_t v) {
    *(vecu_t *) p = v;
}

inline vec_t splat(float x) {
    return vec_t{} + x;
}

inline float half_to_float(uint16_t h) {
#if defined(__F16C__) || defined(__AVX512F__)
    return _cvtsh_ss(h);
#elif defined(__ARM_FP16_FORMAT_IEEE)
    __fp16 x;
    memcpy(&x, &h, sizeof(x));
    return x;
#else
    const uint32_t sign = (uint32_t) (h & 0x8000) << 16;
    uint32_t       bits = (uint32_t) (h & 0x7fff) << 13;
    float          x;
    memcpy(&x, &bits, sizeof(x));
    x *= 0x1p112f;  // rebias the exponent; also makes subnormals right
    memcpy(&bits, &x, sizeof(x));
    if ((h & 0x7c00) == 0x7c00) {
        bits |= 0x7f800000;
    }
    bits |= sign;
    memcpy(&x, &bits, sizeof(x));
    return x;
#endif
}

void zero_tail(uint32_t n, uint32_t d, float * panel, size_t ld) {
    const uint32_t n_pad = restkv_pad(n);
    for (uint32_t k = 0; k < d && n < n_pad; ++k) {
        std::fill(panel + k * ld + n, panel + k * ld + n_pad, 0.0f);
    }
}

void transpose(const float * rows, uint32_t n, uint32_t d, float * panel, size_t ld) {
    constexpr uint32_t BK = 16;
    for (uint32_t k0 = 0; k0 < d; k0 += BK) {
        const uint32_t k1 = std::min(d, k0 + BK);
        for (uint32_t j = 0; j < n; ++j) {
            for (uint32_t k = k0; k < k1; ++k) {
                panel[k * ld + j] = rows[(size_t) j * d + k];
            }
        }
    }
    zero_tail(n, d, panel, ld);
}

void transpose_f16(const uint8_t * rows, size_t row_stride, uint32_t n, uint32_t d, float * panel, size_t ld) {
    constexpr uint32_t BJ = 16;
    constexpr uint32_t BK = 16;
    uint32_t           j0 = 0;
    // blocks of 16 cells: one row of the panel is then a full vector store
    for (; j0 + BJ <= n; j0 += BJ) {
        uint32_t k0 = 0;
        for (; k0 + BK <= d; k0 += BK) {
            alignas(64) float block[BJ][BK];
            for (uint32_t j = 0; j < BJ; ++j) {
                uint16_t h[BK];
                memcpy(h, rows + (j0 + j) * row_stride + k0 * sizeof(uint16_t), sizeof(h));
#if defined(__AVX512F__)
                _mm512_store_ps(block[j], _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) h)));
#elif defined(__F16C__)
                _mm256_store_ps(block[j], _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) h)));
                _mm256_store_ps(block[j] + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (h + 8))));
#else
                for (uint32_t k = 0; k < BK; ++k) {
                    block[j][k] = half_to_float(h[k]);
                }
#endif
            }
            for (uint32_t k = 0; k < BK; ++k) {
                float * out = panel + (k0 + k) * ld + j0;
                for (uint32_t j = 0; j < BJ; ++j) {
                    out[j] = block[j][k];
                }
            }
        }
        for (; k0 < d; ++k0) {
            for (uint32_t j = 0; j < BJ; ++j) {
                uint16_t h;
                memcpy(&h, rows + (j0 + j) * row_stride + k0 * sizeof(h), sizeof(h));
                panel[k0 * ld + j0 + j] = half_to_float(h);
            }
        }
    }
    for (; j0 < n; ++j0) {
        for (uint32_t k = 0; k < d; ++k) {
            uint16_t h;
            memcpy(&h, rows + j0 * row_stride + k * sizeof(h), sizeof(h));
            panel[k * ld + j0] = half_to_float(h);
        }
    }
    zero_tail(n, d, panel, ld);
}

// ROWS rows of `a` against NV vectors of cells, k from k0. Sums of RUN products are added up: shorter chains of float
// additions, smaller errors.
template <int ROWS>
inline void multiply(const float * a, size_t lda, uint32_t k0, uint32_t d, const float * panel, size_t ld,
                     vec_t (&acc)[ROWS][NV]) {
    constexpr uint32_t RUN = 32;
    for (int r = 0; r < ROWS; ++r) {
        for (int v = 0; v < NV; ++v) {
            acc[r][v] = vec_t{};
        }
    }
    while (k0 < d) {
        const uint32_t k1 = std::min(d, k0 + RUN);
        vec_t          sum[ROWS][NV];
        for (int r = 0; r < ROWS; ++r) {
            for (int v = 0; v < NV; ++v) {
                sum[r][v] = vec_t{};
            }
        }
        for (; k0 < k1; ++k0) {
            vec_t x[NV];
            for (int v = 0; v < NV; ++v) {
                x[v] = load(panel + k0 * ld + v * W);
            }
            for (int r = 0; r < ROWS; ++r) {
                const float s = a[r * lda + k0];
                for (int v = 0; v < NV; ++v) {
                    sum[r][v] += x[v] * s;
                }
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            for (int v = 0; v < NV; ++v) {
                acc[r][v] += sum[r][v];
            }
        }
    }
}

template <int ROWS>
void matmul_rows(const float * a, uint32_t d, const float * panel, size_t ld, uint32_t n, float * out, size_t ldo) {
    for (uint32_t j = 0; j < n; j += W * NV) {
        vec_t acc[ROWS][NV];
        multiply<ROWS>(a, d, 0, d, panel + j, ld, acc);
        for (int r = 0; r < ROWS; ++r) {
            for (int v = 0; v < NV; ++v) {
                store(out + r * ldo + j + v * W, acc[r][v]);
            }
        }
    }
}

void matmul(const float * a, uint32_t n_rows, uint32_t d, const float * panel, size_t ld, uint32_t n, float * out,
            size_t ldo) {
    uint32_t r = 0;
    for (; r + BLOCK_ROWS <= n_rows; r += BLOCK_ROWS) {
        matmul_rows<BLOCK_ROWS>(a + (size_t) r * d, d, panel, ld, n, out + r * ldo, ldo);
    }
    for (; r < n_rows; ++r) {
        matmul_rows<1>(a + (size_t) r * d, d, panel, ld, n, out + r * ldo, ldo);
    }
}

template <int ROWS>
inline void add_squares(const float * upper, uint32_t r, uint32_t d, const float * x, vec_t (&sum)[NV]) {
    vec_t acc[ROWS][NV];
    multiply<ROWS>(upper + (size_t) r * d, d, r, d, x, W * NV, acc);
    for (int i = 0; i < ROWS; ++i) {
        for (int v = 0; v < NV; ++v) {
            sum[v] += acc[i][v] * acc[i][v];
        }
    }
}

void distance2(const float * upper, const float * o, uint32_t d, const float * panel, size_t ld, uint32_t n,
               float * out) {
    constexpr uint32_t D_MAX = 512;
    alignas(64) float  x[D_MAX * W * NV];
    for (uint32_t j = 0; j < n; j += W * NV) {
        vec_t sum[NV] = {};
        // differences first: o and v may be nearly equal, and a projection of each would cancel
        for (uint32_t k = 0; k < d; ++k) {
            for (int v = 0; v < NV; ++v) {
                const vec_t diff = splat(o[k]) - load(panel + k * ld + j + v * W);
                if (upper) {
                    store(x + (k * NV + v) * W, diff);
                } else {
                    sum[v] += diff * diff;
                }
            }
        }
        if (upper) {
            uint32_t r = 0;
            for (; r + BLOCK_ROWS <= d; r += BLOCK_ROWS) {
                add_squares<BLOCK_ROWS>(upper, r, d, x, sum);
            }
            for (; r < d; ++r) {
                add_squares<1>(upper, r, d, x, sum);
            }
        }
        for (int v = 0; v < NV; ++v) {
            store(out + j + v * W, sum[v]);
        }
    }
}

float dot(const float * a, const float * b, uint32_t n) {
    vec_t    acc[4] = {};
    uint32_t j      = 0;
    for (; j + 4 * W <= n; j += 4 * W) {
        for (int v = 0; v < 4; ++v) {
            acc[v] += load(a + j + v * W) * load(b + j + v * W);
        }
    }
    const vec_t sum   = (acc[0] + acc[1]) + (acc[2] + acc[3]);
    double      total = 0.0;
    for (int i = 0; i < W; ++i) {
        total += sum[i];
    }
    for (; j < n; ++j) {
        total += (double) a[j] * b[j];
    }
    return (float) total;
}

void axpy(float w, const float * x, uint32_t n, float * y) {
    uint32_t j = 0;
    for (; j + W <= n; j += W) {
        store(y + j, load(y + j) + load(x + j) * w);
    }
    for (; j < n; ++j) {
        y[j] += w * x[j];
    }
}

// exp(x) for x <= 0 (relative error below 2e-7); 0 below -87
inline vec_t exp_vec(vec_t x) {
    const vec_t  magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const veci_t tiny  = x < splat(-87.0f);
    const vec_t  t     = x * 1.44269504088896341f + magic;
    const vec_t  n     = t - magic;
    const vec_t  r     = (x - n * 0.693359375f) - n * -2.12194440e-4f;

    vec_t p = splat(1.9875691500e-4f);
    p       = p * r + 1.3981999507e-3f;
    p       = p * r + 8.3334519073e-3f;
    p       = p * r + 4.1665795894e-2f;
    p       = p * r + 1.6666665459e-1f;
    p       = p * r + 5.0000001201e-1f;
    p       = p * r * r + r + 1.0f;

    // the integer sits in the low bits of t; unsigned, because below -87 (masked out) the sum wraps
    const bits_t e = (bits_t) t << 23;
    const bits_t y = ((bits_t) p + e) & ~(bits_t) tiny;
    return (vec_t) y;
}

void softcap(float * z, uint32_t n, float cap) {
    for (uint32_t j = 0; j < n; ++j) {
        z[j] = cap * tanhf(z[j] / cap);
    }
}

uint32_t argmax(const float * z, uint32_t n) {
    vec_t    best = splat(z[0]);
    uint32_t j    = 0;
    for (; j + W <= n; j += W) {
        const vec_t  x = load(z + j);
        const veci_t m = x > best;
        best           = (vec_t) (((veci_t) x & m) | ((veci_t) best & ~m));
    }
    float top = z[0];
    for (int i = 0; i < W; ++i) {
        top = std::max(top, best[i]);
    }
    for (; j < n; ++j) {
        top = std::max(top, z[j]);
    }
    const uint32_t i = (uint32_t) (std::find(z, z + n, top) - z);
    return i < n ? i : 0;  // a row of NaN has no largest
}

double exp_sum(float * z, uint32_t n, float max, uint32_t skip) {
    // short partial sums in float, their total in double: exact enough for 131072 cells
    constexpr uint32_t RUN   = 64 * W;
    double             total = 0.0;
    uint32_t           j     = 0;
    while (j + W <= n) {
        const uint32_t begin = j;
        const uint32_t end   = std::min(n / W * W, j + RUN);
        vec_t          sum   = {};
        for (; j < end; j += W) {
            const vec_t e = exp_vec(load(z + j) - max);
            store(z + j, e);
            sum += e;
        }
        if (skip >= begin && skip < end) {
            // the skipped cell is the largest: a float sum with it would lose the digits of the others
            for (uint32_t i = begin; i < end; ++i) {
                total += i == skip ? 0.0 : (double) z[i];
            }
        } else {
            for (int i = 0; i < W; ++i) {
                total += sum[i];
            }
        }
    }
    for (; j < n; ++j) {
        z[j] = z[j] - max < -87.0f ? 0.0f : expf(z[j] - max);
        total += j == skip ? 0.0 : (double) z[j];
    }
    return total;
}

int64_t top_pos_sum(const float * z, const int32_t * pos, uint32_t n, uint32_t n_top, uint16_t * bins) {
    constexpr int32_t N_BINS = 1024;

    float lo = z[0];
    float hi = z[0];
    for (uint32_t j = 0; j < n; ++j) {
        lo = std::min(lo, z[j]);
        hi = std::max(hi, z[j]);
    }
    // wider than a float can hold, or flat: one bin, sorted out below
    const float range = hi - lo;
    const float scale = range > 0.0f && std::isfinite(range) ? (N_BINS - 1) / range : 0.0f;

    uint32_t count[N_BINS] = {};
    for (uint32_t j = 0; j < n; ++j) {
        bins[j] = (uint16_t) std::clamp((int32_t) ((z[j] - lo) * scale), 0, N_BINS - 1);
    }
    for (uint32_t j = 0; j < n; ++j) {
        count[bins[j]]++;
    }

    uint32_t n_above = 0;
    int32_t  cut     = N_BINS - 1;
    while (n_above + count[cut] < n_top) {
        n_above += count[cut--];
    }

    int64_t sum = 0;
    for (uint32_t j = 0; j < n; ++j) {
        sum += bins[j] > cut ? pos[j] : 0;
    }

    const uint32_t n_rest = n_top - n_above;
    if (n_rest > 0) {
        static thread_local std::vector<uint32_t> at_cut;
        at_cut.clear();
        for (uint32_t j = 0; j < n; ++j) {
            if (bins[j] == cut) {
                at_cut.push_back(j);
            }
        }
        if (n_rest < at_cut.size()) {
            std::nth_element(at_cut.begin(), at_cut.begin() + n_rest, at_cut.end(),
                             [z](uint32_t a, uint32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; });
        }
        for (uint32_t i = 0; i < n_rest; ++i) {
            sum += pos[at_cut[i]];
        }
    }
    return sum;
}

}  // namespace

extern const restkv_kernels RESTKV_CAT(restkv_kernels_, RESTKV_ISA);

const restkv_kernels RESTKV_CAT(restkv_kernels_, RESTKV_ISA) = {
    RESTKV_STR(RESTKV_ISA),
    transpose,
    transpose_f16,
    matmul,
    distance2,
    dot,
    axpy,
    softcap,
    argmax,
    exp_sum,
    top_pos_sum,
};
