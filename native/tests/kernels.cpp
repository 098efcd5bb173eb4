#include "stages/cpu/kernels.h"

#include "tests/check.h"
#include "tests/kernels.h"
#include "tests/numbers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

static void test_matmul(const restkv_kernels & k, uint32_t n, uint32_t d, uint32_t rows) {
    const uint32_t           ld    = restkv_pad(n);
    const std::vector<float> cells = normal((size_t) n * d);
    const std::vector<float> a     = normal((size_t) rows * d);
    std::vector<float>       panel((size_t) d * ld, NAN);
    std::vector<float>       out((size_t) rows * ld);
    k.transpose(cells.data(), n, d, panel.data(), ld);
    k.matmul(a.data(), rows, d, panel.data(), ld, n, out.data(), ld);
    bool right = true;
    for (uint32_t r = 0; r < rows; ++r) {
        for (uint32_t j = 0; j < n; ++j) {
            double sum = 0.0;
            for (uint32_t x = 0; x < d; ++x) {
                sum += (double) a[r * d + x] * cells[(size_t) j * d + x];
            }
            right = right && close(out[r * ld + j], sum, 1e-5 * d);
        }
        for (uint32_t j = n; j < ld; ++j) {
            right = right && out[r * ld + j] == 0.0f;
        }
    }
    CHECK(right);
}

static void test_distance(const restkv_kernels & k, uint32_t n, uint32_t d) {
    const uint32_t           ld    = restkv_pad(n);
    const std::vector<float> cells = normal((size_t) n * d);
    const std::vector<float> o     = normal(d);
    std::vector<float>       upper = normal((size_t) d * d);
    for (uint32_t r = 0; r < d; ++r) {
        std::fill(upper.begin() + (size_t) r * d, upper.begin() + (size_t) r * d + r, 0.0f);
    }
    std::vector<float> panel((size_t) d * ld);
    k.transpose(cells.data(), n, d, panel.data(), ld);
    for (const float * u : { (const float *) upper.data(), (const float *) nullptr }) {
        std::vector<float> out(ld);
        k.distance2(u, o.data(), d, panel.data(), ld, n, out.data());
        bool right = true;
        for (uint32_t j = 0; j < n; ++j) {
            double sum = 0.0;
            for (uint32_t r = 0; r < d; ++r) {
                double y = u ? 0.0 : (double) o[r] - cells[(size_t) j * d + r];
                for (uint32_t x = r; u && x < d; ++x) {
                    y += (double) u[(size_t) r * d + x] * ((double) o[x] - cells[(size_t) j * d + x]);
                }
                sum += y * y;
            }
            right = right && close(out[j], sum, 1e-5 * d);
        }
        CHECK(right);
    }
}

static void test_half(const restkv_kernels & k) {
    // every finite half is exact in float, whatever the alignment of the rows
    const uint32_t        n = 61440;
    std::vector<uint8_t>  bytes((size_t) n * 2 + 1);
    std::vector<uint16_t> bits(n);
    for (uint32_t i = 0; i < n; ++i) {
        bits[i] = (uint16_t) (i < 31744 ? i : i + 1024);  // skips infinities and NaN of the positive half
    }
    memcpy(bytes.data() + 1, bits.data(), (size_t) n * 2);
    const uint32_t     cells = n / 48;
    const uint32_t     ld    = restkv_pad(cells);
    std::vector<float> panel((size_t) 48 * ld);
    k.transpose_f16(bytes.data() + 1, 96, cells, 48, panel.data(), ld);
    bool right = true;
    for (uint32_t i = 0; i < n; ++i) {
        if ((bits[i] & 0x7c00) == 0x7c00) {
            continue;
        }
        const int    e     = (bits[i] >> 10) & 31;
        const double m     = bits[i] & 1023;
        double       value = e == 0 ? std::ldexp(m, -24) : std::ldexp(1024.0 + m, e - 25);
        value              = bits[i] & 0x8000 ? -value : value;
        right              = right && panel[(size_t) (i % 48) * ld + i / 48] == (float) value;
    }
    CHECK(right);
}

static void test_softmax(const restkv_kernels & k, uint32_t n) {
    std::vector<float> z = normal(n);
    for (float & x : z) {
        x *= 30.0f;
    }
    const std::vector<float> before = z;
    const uint32_t           top    = k.argmax(z.data(), n);
    CHECK(top == (uint32_t) (std::max_element(z.begin(), z.end()) - z.begin()));
    const double rest  = k.exp_sum(z.data(), n, before[top], top);
    double       exact = 0.0;
    bool         right = z[top] == 1.0f;
    for (uint32_t j = 0; j < n; ++j) {
        const double e = std::exp((double) before[j] - before[top]);
        exact += j == top ? 0.0 : e;
        // the difference of two floats is rounded before exp sees it
        const double tolerance = 3e-7 + 1.2e-7 * (before[top] - before[j]);
        right                  = right && std::fabs(z[j] - e) <= tolerance * e + 2e-38;
    }
    CHECK(right);
    CHECK(std::fabs(rest - exact) <= 1e-5 * exact + 1e-36);
}

static void test_top_pos_sum(const restkv_kernels & k, uint32_t n, bool ties) {
    std::vector<float>   z = normal(n);
    std::vector<int32_t> pos(n);
    for (uint32_t j = 0; j < n; ++j) {
        z[j]   = ties ? std::round(z[j]) : z[j];
        pos[j] = (int32_t) (j * 70000 % 1000003);
    }
    std::vector<uint32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return z[a] > z[b]; });
    std::vector<uint16_t> bins(n);
    for (uint32_t n_top : { 1u, n / 3 + 1, n }) {
        int64_t sum = 0;
        for (uint32_t i = 0; i < n_top; ++i) {
            sum += pos[order[i]];
        }
        CHECK(k.top_pos_sum(z.data(), pos.data(), n, n_top, bins.data()) == sum);
    }
    z[0] = NAN;  // any answer, but no access outside the arrays
    k.top_pos_sum(z.data(), pos.data(), n, n / 2 + 1, bins.data());
    z.assign(n, 3e38f);
    z[n / 2] = -3e38f;
    k.top_pos_sum(z.data(), pos.data(), n, n / 2 + 1, bins.data());
}

extern const restkv_kernels restkv_kernels_baseline;
#ifdef RESTKV_HAVE_X86_ISA
extern const restkv_kernels restkv_kernels_avx2;
extern const restkv_kernels restkv_kernels_avx512;
#endif

void restkv_test_kernels() {
    std::vector<const restkv_kernels *> all = { &restkv_kernels_baseline };
#ifdef RESTKV_HAVE_X86_ISA
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        all.push_back(&restkv_kernels_avx2);
    }
    if (restkv_cpu_kernels() == &restkv_kernels_avx512) {
        all.push_back(&restkv_kernels_avx512);
    }
#endif
    for (const restkv_kernels * k : all) {
        fprintf(stderr, "kernels: %s\n", k->isa);
        for (uint32_t n : SIZES) {
            for (uint32_t d : { 1u, 20u, 64u }) {
                test_matmul(*k, n, d, 1 + n % 19);
                test_distance(*k, n, d);
            }
            test_softmax(*k, n);
            test_top_pos_sum(*k, n, false);
            test_top_pos_sum(*k, n, true);
        }
        test_distance(*k, 40, 512);
        test_half(*k);
    }
}
