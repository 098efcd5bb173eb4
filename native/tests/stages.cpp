// The stages and their kernels, against plain loops. Meant to run under the address and undefined-behaviour sanitizers
// too.

#include "tests/archive.h"
#include "tests/check.h"
#include "tests/kernels.h"
#include "tests/numbers.h"

#include "stages/compact.h"
#include "stages/share_heads.h"
#include "stages/stages.h"
#include "stages/wo.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

static void test_select() {
    for (uint32_t n : SIZES) {
        std::vector<float> y = normal(n);
        for (float & x : y) {
            x = std::round(x * 2.0f);
        }
        for (uint32_t n_keep : { 0u, 1u, n / 2, n, n + 1 }) {
            std::vector<int32_t> kept(n);
            const uint32_t       m = restkv_select_top(y.data(), n, n_keep, kept.data());
            CHECK(m == std::min(n, n_keep));
            std::vector<char> in(n, 0);
            for (uint32_t i = 0; i < m; ++i) {
                CHECK(i == 0 || kept[i] > kept[i - 1]);
                in[kept[i]] = 1;
            }
            bool right = true;
            for (uint32_t a = 0; a < n; ++a) {
                for (uint32_t b = 0; b < n && in[a]; ++b) {
                    right = right && (in[b] || y[a] > y[b] || (y[a] == y[b] && a < b));
                }
            }
            CHECK(right);
        }
    }
}

static void test_move() {
    for (size_t n_bytes : { 1, 34, 128, 144 }) {
        const size_t         stride = n_bytes * 3;
        std::vector<uint8_t> rows(stride * 100);
        std::iota(rows.begin(), rows.end(), 0);
        const std::vector<uint8_t> before = rows;
        std::vector<int32_t>       src;
        for (int32_t j = 0; j < 100; ++j) {
            if (rng() % 2) {
                src.push_back(j);
            }
        }
        restkv_move_rows(rows.data() + n_bytes, stride, n_bytes, src.data(), (uint32_t) src.size());
        bool right = true;
        for (size_t i = 0; i < 100; ++i) {
            const size_t from = i < src.size() ? src[i] : i;
            right = right && !memcmp(&rows[i * stride + n_bytes], &before[from * stride + n_bytes], n_bytes);
            // the other heads of the row stay
            right = right && !memcmp(&rows[i * stride], &before[i * stride], n_bytes);
            right = right && !memcmp(&rows[i * stride + 2 * n_bytes], &before[i * stride + 2 * n_bytes], n_bytes);
        }
        CHECK(right);
    }
}

// Rows that move up, down or not at all, from a base inside the cache: as budgets of heads need it.
static void test_move_to() {
    constexpr size_t n_bytes = 24, n_rows = 100;
    for (int round = 0; round < 50; ++round) {
        std::vector<uint8_t> rows(n_bytes * n_rows);
        for (uint8_t & x : rows) {
            x = (uint8_t) rng();
        }
        const std::vector<uint8_t> before = rows;
        const int64_t              base   = rng() % 30;
        std::vector<int32_t>       src;
        for (int32_t j = 0; j < (int32_t) (n_rows - base); ++j) {
            if (rng() % 3 == 0) {
                src.push_back(j);
            }
        }
        const int64_t first = rng() % (n_rows - src.size() + 1);  // row that the first survivor moves to
        restkv_move_rows(rows.data() + base * n_bytes, n_bytes, n_bytes, src.data(), (uint32_t) src.size(),
                         first - base);
        bool right = true;
        for (size_t i = 0; i < src.size(); ++i) {
            right = right && !memcmp(&rows[(first + i) * n_bytes], &before[(base + src[i]) * n_bytes], n_bytes);
        }
        CHECK(right);
    }
}

static void test_share() {
    // 6 largest of both heads: 4 and 2; a third of 3 is fixed
    const float           rows[] = { 9, 8, 7, 6, 1, 1, 1, 1, 5, 4, 0, 0 };
    const uint32_t        n[]    = { 8, 4 };
    std::vector<uint32_t> out(2);
    CHECK(restkv_share(rows, n, 2, 3, 1.0 / 3, 0, false, out.data()) == RESTKV_OK);
    CHECK(out[0] == 4 && out[1] == 2);
    CHECK(restkv_share(rows, n, 2, 3, 0.0, 3, false, out.data()) == RESTKV_OK);
    CHECK(out[0] == 3 && out[1] == 3);
    CHECK(restkv_share(rows, n, 2, 100, 0.2, 0, true, out.data()) == RESTKV_OK);
    CHECK(out[0] == 8 && out[1] == 4);
    CHECK(restkv_share(rows, n, 2, 3, 1.5, 0, true, out.data()) == RESTKV_INVALID);
}

// Scores that are no numbers: an order that sorts need all the same, and no cell too many.
static void test_share_without_numbers() {
    for (uint32_t n : { 3u, 16u, 17u, 40u, 500u }) {
        std::vector<std::vector<float>> rows(4);
        std::vector<const float *>      starts;
        for (size_t h = 0; h < rows.size(); ++h) {
            rows[h] = normal(n);
            for (uint32_t i = (uint32_t) h; i < n; i += 1 + (uint32_t) rng() % 5) {
                const float odd[] = { NAN, INFINITY, -INFINITY, -NAN };
                rows[h][i]        = odd[rng() % (h + 1)];
            }
            starts.push_back(rows[h].data());
        }
        const uint32_t              mean = n / 2;
        const std::vector<uint32_t> past =
            restkv_share_heads(starts, std::vector<uint32_t>(4, n), mean, 0.2, 0, n % 2 == 0);
        CHECK(std::accumulate(past.begin(), past.end(), 0u) == 4 * mean);
        CHECK(*std::max_element(past.begin(), past.end()) <= n);
    }
}

static void test_smooth() {
    const int32_t pos[] = { 0, 1, 2, 10, 11, 50 };
    const float   raw[] = { 1, 2, 3, 4, 5, 6 };
    float         out[6];
    restkv_smooth(raw, pos, 6, RESTKV_POOLING_ADAPTIVE, 3, 0, out);
    const float expected[] = {
        (1 + 1 + 2) / 3.0f, 2, 2.5f, 4.5f, 4.5f, 6
    };  // the ends are replicated, gaps are not crossed
    for (int j = 0; j < 6; ++j) {
        CHECK(close(out[j], expected[j], 1e-6));
    }
    restkv_smooth(raw, pos, 6, RESTKV_POOLING_ADAPTIVE, 3, 20, out);
    CHECK(out[3] == 4.0f);  // nothing near its target: its own score
    CHECK(out[5] == 6.0f);
    int32_t kernel, shift;
    restkv_adapt(0.0, 100, 5, &kernel, &shift);
    CHECK(kernel == 5 && shift == 1);
    restkv_adapt(-300.0, 100, 5, &kernel, &shift);
    CHECK(kernel == 7 && shift == -2);
    restkv_adapt(350.0, 100, 5, &kernel, &shift);
    CHECK(kernel == 7 && shift == 3);
    restkv_adapt(-99.0, 100, 5, &kernel, &shift);
    CHECK(kernel == 5 && shift == 0);
}

static void test_factor() {
    for (uint32_t d : { 1u, 5u, 64u, 128u }) {
        const uint32_t           rows = d / 2 + 3;  // W_o may see fewer directions than d
        const std::vector<float> w    = normal((size_t) rows * d);
        std::vector<double>      sum((size_t) d * d, 0.0);
        restkv_add_gram(w.data(), d, rows, d, sum.data());
        std::vector<float> upper((size_t) d * d);
        restkv_factor(sum.data(), d, upper.data());
        const std::vector<float> x    = normal(d);
        double                   want = 0.0, got = 0.0;
        for (uint32_t r = 0; r < rows; ++r) {
            double y = 0.0;
            for (uint32_t k = 0; k < d; ++k) {
                y += (double) w[(size_t) r * d + k] * x[k];
            }
            want += y * y;
        }
        for (uint32_t r = 0; r < d; ++r) {
            double y = 0.0;
            for (uint32_t k = 0; k < d; ++k) {
                y += (double) upper[(size_t) r * d + k] * x[k];
            }
            got += y * y;
        }
        CHECK(close(got, want, 1e-4));
        if (d % 64 == 0) {  // a constant vector of a block rotates into its first coordinate, eightfold
            std::vector<float> rotated = upper;
            restkv_rotate_factor(rotated.data(), d, 64);
            double plain = 0.0, turned = 0.0;
            for (uint32_t r = 0; r < d; ++r) {
                double y = 0.0;
                for (uint32_t k = 0; k < 64; ++k) {
                    y += upper[(size_t) r * d + k];
                }
                plain += y * y;
                turned += std::pow(8.0 * rotated[(size_t) r * d], 2.0);
            }
            CHECK(close(turned, plain, 1e-4));
        }
    }
}

// Scores of sizes that do not fit the blocks; sanitizers watch the edges.
static void test_score_sizes() {
    for (uint32_t n : { 9u, 40u, 257u, 5000u }) {
        for (uint32_t m = 0; m < restkv_method_count(); ++m) {
            const char *      method = restkv_method_name(m);
            restkv_score_args args   = {};
            snprintf(args.params.method, sizeof(args.params.method), "%s", method);
            args.params.window      = 4;
            args.params.budget      = 8;
            args.params.kernel      = 5;
            args.params.scale       = 7;
            args.params.pooling     = RESTKV_POOLING_ADAPTIVE;
            args.params.reduce      = RESTKV_REDUCE_MEAN;
            args.params.metric_mode = n % 2 ? RESTKV_METRIC_AFTER : RESTKV_METRIC_BEFORE;
            args.params.alpha       = 0.3f;
            args.params.tau         = 1.0f;
            args.params.use_wo = args.params.use_ema = 1;
            args.params.indicator                    = (int32_t) (n % 3);
            args.params.rows                         = n % 3 == 2 ? RESTKV_ROWS_MAX : RESTKV_ROWS_INVERTED_EMA;
            args.params.sinks                        = 1;
            args.layer                               = 1;
            args.n_layer                             = 2;
            args.cursor                              = n % 8;
            args.n_head                              = 6;
            args.n_head_kv                           = 2;
            args.n_embd_head                         = 20;
            args.n_cells                             = n;
            args.n_embd_out                          = 11;
            const std::vector<float> q = normal(6 * 4 * 20), k = normal((size_t) 2 * n * 20),
                                     v = normal((size_t) 2 * n * 20), wo = normal(11 * 120);
            args.q  = q.data();
            args.k  = k.data();
            args.v  = v.data();
            args.wo = wo.data();
            std::vector<float>   raw((size_t) 6 * (n - 4)), smoothed(raw.size());
            std::vector<int32_t> sizes(6), shifts(6), indices(2 * 4);
            restkv_score_out     out = { raw.data(), smoothed.data(), sizes.data(), shifts.data(), indices.data() };
            CHECK(restkv_score(&args, &out) == RESTKV_OK);
            CHECK(std::all_of(raw.begin(), raw.end(), [](float x) { return std::isfinite(x); }));
            CHECK(
                std::all_of(indices.begin(), indices.end(), [&](int32_t i) { return i >= 0 && i < (int32_t) n - 4; }));
            args.n_cells = 4;
            CHECK(restkv_score(&args, &out) == RESTKV_INVALID);
            CHECK(strlen(restkv_last_error()) > 0);
            args.n_cells = n;
            args.layer   = 2;
            args.n_rows  = n + 1;
            // more queries than cells, a layer that is not there: refused by those that look at them
            bool refused = false;
            for (const char * name : { "restkv", "snapkv", "tova", "h2o", "lacache" }) {
                refused = refused || strcmp(method, name) == 0;
            }
            CHECK(restkv_score(&args, &out) == (refused ? RESTKV_INVALID : RESTKV_OK));
        }
    }
}

int main() {
    restkv_test_archive_killed();  // first: a process that holds little is forked faster
    restkv_test_kernels();
    test_select();
    test_move();
    test_move_to();
    test_share();
    test_share_without_numbers();
    test_smooth();
    test_factor();
    test_score_sizes();
    restkv_test_archive();
    return restkv_report_checks();
}
