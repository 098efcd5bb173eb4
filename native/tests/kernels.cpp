// Every instruction set that this processor has gives what plain loops give, at sizes around the vector width.

#include "cpu/kernels.h"

#include "check.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>

extern const restkv_kernels restkv_kernels_baseline;
#ifdef RESTKV_HAVE_X86_ISA
extern const restkv_kernels restkv_kernels_avx2;
extern const restkv_kernels restkv_kernels_avx512;
#endif

static bool close(double x, double y, double scale) {
    return std::fabs(x - y) <= 2e-5 * std::max(scale, 1.0);
}

static void test_panels(const restkv_kernels & k, test_random & random, uint32_t n, uint32_t d) {
    const uint32_t           n_pad = restkv_pad(n);
    const std::vector<float> rows  = random.reals((size_t) n * d);
    std::vector<float>       panel((size_t) d * n_pad, 7.0f);
    k.transpose(rows.data(), n, d, panel.data(), n_pad);

    // rows of half floats with a gap between them, as in a cache with several KV heads
    const size_t         stride = (d + 3) * sizeof(ggml_fp16_t);
    std::vector<uint8_t> halves((n - 1) * stride + d * sizeof(ggml_fp16_t));
    for (uint32_t j = 0; j < n; ++j) {
        ggml_fp32_to_fp16_row(rows.data() + (size_t) j * d, (ggml_fp16_t *) (halves.data() + j * stride), d);
    }
    std::vector<float> panel_f16((size_t) d * n_pad, 7.0f);
    k.transpose_f16(halves.data(), stride, n, d, panel_f16.data(), n_pad);
    for (uint32_t i = 0; i < d; ++i) {
        for (uint32_t j = 0; j < n_pad; ++j) {
            const float x = j < n ? rows[(size_t) j * d + i] : 0.0f;
            CHECK(panel[(size_t) i * n_pad + j] == x);
            CHECK(panel_f16[(size_t) i * n_pad + j] == ggml_fp16_to_fp32(ggml_fp32_to_fp16(x)));
        }
    }

    const uint32_t           n_rows = 3;
    const std::vector<float> a      = random.reals((size_t) n_rows * d);
    std::vector<float>       out((size_t) n_rows * n_pad);
    k.matmul(a.data(), n_rows, d, panel.data(), n_pad, n, out.data(), n_pad);
    for (uint32_t r = 0; r < n_rows; ++r) {
        for (uint32_t j = 0; j < n; ++j) {
            double sum = 0.0;
            for (uint32_t i = 0; i < d; ++i) {
                sum += (double) a[r * d + i] * rows[(size_t) j * d + i];
            }
            CHECK(close(out[(size_t) r * n_pad + j], sum, std::sqrt(d)));
        }
    }

    std::vector<float> upper = random.reals((size_t) d * d);
    for (uint32_t i = 0; i < d * d; ++i) {
        upper[i] = i % d < i / d ? 0.0f : upper[i];
    }
    const std::vector<float> o = random.reals(d);
    std::vector<float>       d2(n_pad);
    for (const float * factor : { (const float *) upper.data(), (const float *) nullptr }) {
        k.distance2(factor, o.data(), d, panel.data(), n_pad, n, d2.data());
        for (uint32_t j = 0; j < n; ++j) {
            double sum = 0.0;
            for (uint32_t r = 0; r < d; ++r) {
                double y = factor ? 0.0 : (double) o[r] - rows[(size_t) j * d + r];
                for (uint32_t i = r; factor && i < d; ++i) {
                    y += (double) factor[(size_t) r * d + i] * ((double) o[i] - rows[(size_t) j * d + i]);
                }
                sum += y * y;
            }
            CHECK(close(d2[j], sum, sum));
        }
    }
}

static void test_rows(const restkv_kernels & k, test_random & random, uint32_t n) {
    const uint32_t           n_pad = restkv_pad(n);
    const std::vector<float> x     = random.reals(n_pad);
    const std::vector<float> y     = random.reals(n_pad);
    double                   dot   = 0.0;
    for (uint32_t j = 0; j < n; ++j) {
        dot += (double) x[j] * y[j];
    }
    CHECK(close(k.dot(x.data(), y.data(), n), dot, std::sqrt(n)));

    std::vector<float> z = y;
    k.axpy(0.5f, x.data(), n, z.data());
    for (uint32_t j = 0; j < n; ++j) {
        CHECK(close(z[j], y[j] + 0.5 * x[j], 1.0));
    }
    z = x;
    k.softcap(z.data(), n, 0.7f);
    for (uint32_t j = 0; j < n; ++j) {
        CHECK(close(z[j], 0.7 * std::tanh(x[j] / 0.7), 1.0));
    }

    z                     = x;
    z[random.below(n)]    = 2.0f;
    z[random.below(n)]    = 2.0f;
    const uint32_t top    = k.argmax(z.data(), n);
    const uint32_t wanted = (uint32_t) (std::max_element(z.begin(), z.begin() + n) - z.begin());
    CHECK(top == wanted);

    const std::vector<float> before = z;
    const double             rest   = k.exp_sum(z.data(), n, 2.0f, top);
    double                   sum    = 0.0;
    for (uint32_t j = 0; j < n; ++j) {
        const double e = std::exp((double) before[j] - 2.0);
        CHECK(close(z[j], e, 1.0));
        sum += j == top ? 0.0 : e;
    }
    CHECK(close(rest, sum, sum));

    // many equal values, so that ties decide
    std::vector<float>   scores(n_pad);
    std::vector<int32_t> pos(n_pad);
    for (uint32_t j = 0; j < n; ++j) {
        scores[j] = 0.25f * random.below(5);
        pos[j]    = (int32_t) (3 * j);
    }
    std::vector<uint32_t> order(n);
    for (uint32_t j = 0; j < n; ++j) {
        order[j] = j;
    }
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
    std::vector<uint16_t> bins(n_pad);
    for (uint32_t n_top : { 1u, (n + 1) / 2, n }) {
        int64_t expected = 0;
        for (uint32_t j = 0; j < n_top; ++j) {
            expected += pos[order[j]];
        }
        CHECK(k.top_pos_sum(scores.data(), pos.data(), n, n_top, bins.data()) == expected);
    }
}

static void test_set(const restkv_kernels & kernels) {
    test_random random{ 1 };
    for (uint32_t n : { 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 257 }) {
        test_rows(kernels, random, n);
        for (uint32_t d : { 1, 15, 16, 17, 64, 80 }) {
            test_panels(kernels, random, n, d);
        }
    }
    for (uint32_t n : { 1023, 1024, 1025 }) {
        test_rows(kernels, random, n);
    }
    printf("kernels: %s\n", kernels.isa);
}

void test_kernels() {
    test_set(restkv_kernels_baseline);
#ifdef RESTKV_HAVE_X86_ISA
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        test_set(restkv_kernels_avx2);
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        test_set(restkv_kernels_avx512);
    }
#endif
}
