#include "graph/product.h"

#include "api/status.h"
#include "graph/graph.h"

#ifdef RESTKV_TEST_WRONG_STAGE
#    include "wrong_stage.h"
#endif

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

// F16 and TF32 have 11 bits of a number: so much larger, the rest is as large as the number itself.
static constexpr float FINE = 2048.0f;

ggml_status restkv_compute(ggml_backend_t backend, ggml_cgraph * gf) {
#ifdef RESTKV_TEST_WRONG_STAGE
    restkv_make_wrong(gf);
    return restkv_compute_wrong(backend, gf);
#else
    return ggml_backend_graph_compute_async(backend, gf);
#endif
}

ggml_backend_buffer_ptr restkv_allocate(ggml_context * ctx, ggml_backend_buffer_type_t buft, const char * what) {
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft));
    if (!buffer) {
        throw restkv_error(RESTKV_NO_MEMORY,
                           std::string("not enough memory on ") + ggml_backend_buft_name(buft) + " for " + what);
    }
    return buffer;
}

static ggml_tensor * multiply(ggml_context * ctx, ggml_tensor * a, ggml_tensor * b) {
    ggml_tensor * y = ggml_mul_mat(ctx, a, b);
    ggml_prec_set_acc(y, GGML_PREC_F32);
    ggml_prec_set_src(y, GGML_PREC_F32, 1);
    return y;
}

// A product of numbers whose 13th bit counts: all sums are floats without rounding. One for each way that backends
// have: many columns, a few, and one. Throws std::runtime_error.
static bool try_product(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft) {
    constexpr int64_t      K = 64, M = 128;
    constexpr float        X = 1.0f + 1.0f / 8192.0f, SUM = K * (1.0f + 1.0f / 4096.0f);
    constexpr float        ERROR = SUM * 1e-5f;  // rounding one of the factors makes 12 times as much
    const ggml_backend_ptr backend(ggml_backend_dev_init(device, nullptr));
    if (!backend) {
        throw restkv_error(RESTKV_NO_MEMORY,
                           std::string(ggml_backend_dev_name(device)) + " has no room for another backend");
    }
    for (const int64_t n : { (int64_t) 96, (int64_t) 12, (int64_t) 1 }) {
        ggml_context_ptr ctx(ggml_init({ 8 * ggml_tensor_overhead() + ggml_graph_overhead_custom(4, false), nullptr,
                                         /*no_alloc =*/true }));
        ggml_tensor *    a  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, K, M);
        ggml_tensor *    b  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, K, n);
        ggml_tensor *    y  = multiply(ctx.get(), a, b);
        ggml_cgraph *    gf = ggml_new_graph_custom(ctx.get(), 4, false);
        ggml_build_forward_expand(gf, y);
        if (!ggml_backend_dev_supports_op(device, y)) {
            return true;  // missing() says so
        }
        const ggml_backend_buffer_ptr buffer = restkv_allocate(ctx.get(), buft, "a product");
        std::vector<float>            x(K * M, X);
        ggml_backend_tensor_set(a, x.data(), 0, ggml_nbytes(a));
        ggml_backend_tensor_set(b, x.data(), 0, ggml_nbytes(b));
        if (restkv_compute(backend.get(), gf) != GGML_STATUS_SUCCESS) {
            throw restkv_error(RESTKV_NO_MEMORY, std::string(ggml_backend_name(backend.get())) + " failed");
        }
        ggml_backend_synchronize(backend.get());
        x.resize(M * n);
        ggml_backend_tensor_get(y, x.data(), 0, ggml_nbytes(y));
        if (std::any_of(x.begin(), x.end(), [](float sum) { return !(std::fabs(sum - SUM) < ERROR); })) {
            return false;
        }
    }
    return true;
}

bool restkv_multiplies_exactly(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft) {
    static std::mutex                         lock;
    static std::map<ggml_backend_dev_t, bool> known;
    const std::lock_guard<std::mutex>         guard(lock);
    const auto                                found = known.find(device);
    return found != known.end() ? found->second : (known[device] = try_product(device, buft));
}

restkv_factor restkv_factor_of(ggml_context * ctx, ggml_tensor * x, ggml_type from, bool exact) {
    if (exact || from == GGML_TYPE_F16) {
        return { x, nullptr };
    }
    ggml_tensor * coarse = ggml_cast(ctx, ggml_cast(ctx, x, GGML_TYPE_F16), GGML_TYPE_F32);
    return { coarse, ggml_scale(ctx, ggml_sub(ctx, x, coarse), FINE) };
}

// Full precision wherever a backend has a choice, and in parts where it has none. fine x fine is below the last digit.
ggml_tensor * restkv_product(ggml_context * ctx, const restkv_factor & a, const restkv_factor & b) {
    ggml_tensor * y    = multiply(ctx, a.coarse, b.coarse);
    ggml_tensor * rest = b.fine ? multiply(ctx, a.coarse, b.fine) : nullptr;
    if (a.fine) {
        ggml_tensor * other = multiply(ctx, a.fine, b.coarse);
        rest                = rest ? ggml_add(ctx, rest, other) : other;
    }
    return rest ? ggml_add(ctx, y, ggml_scale(ctx, rest, 1.0f / FINE)) : y;
}

// Of quantized rows a copy of their words is unpacked: ggml's Vulkan backend unpacks a view from the nearest aligned byte
// before it.
ggml_tensor * restkv_rows_of(ggml_context * ctx, ggml_tensor * cache, uint32_t d, uint32_t n_head_kv, uint32_t head,
                             uint32_t n_heads, uint32_t first, uint32_t n) {
    const size_t size = ggml_row_size(cache->type, d);
    const size_t at   = first * cache->nb[1] + head * size;
    if (ggml_is_quantized(cache->type)) {
        ggml_tensor * words = restkv_graph_words(ctx, cache, d, n_head_kv);
        words = ggml_cont(ctx, ggml_view_3d(ctx, words, words->ne[0], n, n_heads, words->nb[1], words->nb[2], at));
        ggml_tensor * x = ggml_view_3d(ctx, words, words->ne[0], n, n_heads, size, size * n, 0);
        x->type         = cache->type;
        x->ne[0]        = d;
        x->nb[0]        = ggml_type_size(cache->type);
        return ggml_cast(ctx, x, GGML_TYPE_F32);
    }
    ggml_tensor * x = ggml_view_3d(ctx, cache, d, n, n_heads, cache->nb[1], size, at);
    return cache->type == GGML_TYPE_F32 ? ggml_cont(ctx, x) : ggml_cast(ctx, x, GGML_TYPE_F32);
}
