#include "archive/layer.h"

#include "api/status.h"

#include <cstring>

static bool exists(ggml_type type) {
    return (int) type >= 0 && type < GGML_TYPE_COUNT && ggml_blck_size(type) > 0 && ggml_type_size(type) > 0;
}

// From any type that can be read as floats.
static bool convertible(ggml_type from, ggml_type to) {
    const bool readable = from == GGML_TYPE_F32 || ggml_get_type_traits(from)->to_float;
    return from == to || (readable && ggml_get_type_traits(to)->from_float_ref);
}

static void check_type(ggml_type cache, ggml_type type, uint32_t n_head_kv, uint32_t d) {
    if (!exists(cache) || !exists(type)) {
        throw restkv_error(RESTKV_INVALID, "a layer of the archive has a type that ggml does not know");
    }
    const std::string name = ggml_type_name(type);
    if (type != cache && type != GGML_TYPE_Q8_0 && type != GGML_TYPE_Q4_0) {
        throw restkv_error(RESTKV_INVALID, "an archive cannot be of type " + name + ": use auto, q8_0 or q4_0");
    }
    if (type != cache && type == GGML_TYPE_Q4_0 && !ggml_is_quantized(cache)) {
        throw restkv_error(RESTKV_INVALID,
                           "an archive in q4_0 needs a quantized cache, whose rows are rotated; this one is " +
                               std::string(ggml_type_name(cache)) + ": use auto or q8_0");
    }
    if (!convertible(cache, type)) {
        throw restkv_error(RESTKV_INVALID, std::string("rows of a cache in ") + ggml_type_name(cache) +
                                               " cannot be archived as " + name + ": use auto");
    }
    if (n_head_kv == 0 || d == 0) {
        throw restkv_error(RESTKV_INVALID, "a layer of the archive has no heads or no values");
    }
    if (d % ggml_blck_size(type) != 0 || d % ggml_blck_size(cache) != 0) {
        throw restkv_error(RESTKV_INVALID, "heads of " + std::to_string(d) + " values do not divide into blocks of " +
                                               name + ": use auto");
    }
    // Bounded first, so that the products hold.
    if (n_head_kv > RESTKV_ARCHIVE_ROW_MAX || d > RESTKV_ARCHIVE_ROW_MAX ||
        n_head_kv * (uint64_t) ggml_row_size(type, d) > RESTKV_ARCHIVE_ROW_MAX ||
        n_head_kv * (uint64_t) ggml_row_size(cache, d) > RESTKV_ARCHIVE_ROW_MAX) {
        throw restkv_error(RESTKV_INVALID, std::to_string(n_head_kv) + " heads of " + std::to_string(d) +
                                               " values are more than a row of an archive holds");
    }
}

void restkv_check_archive_layer(const restkv_archive_layer & layer) {
    check_type(layer.cache_k, layer.type_k, layer.n_head_kv, layer.d_k);
    check_type(layer.cache_v, layer.type_v, layer.n_head_kv, layer.d_v);
}

size_t restkv_archive_row(const restkv_archive_layer & layer, bool value) {
    return layer.n_head_kv * ggml_row_size(value ? layer.type_v : layer.type_k, value ? layer.d_v : layer.d_k);
}

uint64_t restkv_archive_times(uint64_t a, uint64_t b) {
    if (b > 0 && a > (uint64_t) INT64_MAX / b) {
        throw restkv_error(RESTKV_INVALID, "the archive would be larger than any file: use a smaller n_ctx");
    }
    return a * b;
}

uint64_t restkv_archive_plus(uint64_t a, uint64_t b) {
    if (a > (uint64_t) INT64_MAX || b > (uint64_t) INT64_MAX - a) {
        throw restkv_error(RESTKV_INVALID, "the archive would be larger than any file: use a smaller n_ctx");
    }
    return a + b;
}

void restkv_convert_values(ggml_type from, const uint8_t * src, ggml_type to, uint8_t * dst, int64_t n,
                           float * floats) {
    if (from == to) {
        memcpy(dst, src, ggml_row_size(to, n));
        return;
    }
    if (from == GGML_TYPE_F32) {
        memcpy(floats, src, n * sizeof(float));
    } else {
        ggml_get_type_traits(from)->to_float(src, floats, n);
    }
    if (to == GGML_TYPE_F32) {
        memcpy(dst, floats, n * sizeof(float));
    } else {
        ggml_get_type_traits(to)->from_float_ref(floats, dst, n);
    }
}
