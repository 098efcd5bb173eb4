// A reproducible random choice: a hash of seed, layer, KV head and text position. A position keeps its number for good,
// so what survives many evictions is a uniform sample of the whole text.

#include "methods/methods.h"

static uint64_t hash(uint64_t seed, uint32_t layer, uint32_t head, int32_t pos) {
    uint64_t x = seed ^ (layer * 0x9E3779B97F4A7C15ull) ^ ((head + 1ull) * 0xBF58476D1CE4E5B9ull) ^
                 (((uint64_t) pos + 1) * 0x94D049BB133111EBull);
    x ^= x >> 30;
    x *= 0xBF58476D1CE4E5B9ull;
    x ^= x >> 27;
    x *= 0x94D049BB133111EBull;
    x ^= x >> 31;
    return x;
}

static void score(const restkv_view & view, const restkv_params & params, uint32_t, restkv_scratch & scratch) {
    for (uint32_t h = 0; h < view.group; ++h) {
        float * raw = scratch.raw.data() + (size_t) h * scratch.n_pad;
        for (uint32_t j = 0; j < view.n_past; ++j) {
            raw[j] = (float) (hash(params.seed, view.layer, view.head_kv, view.pos[j]) >> 40) * 0x1p-24f;
        }
    }
}

extern const restkv_method restkv_method_random = {
    "random",
    "a uniform sample of the text and the window",
    /*uses_queries =*/false,
    /*uses_wo =*/false,
    /*pools =*/false,
    score,
    restkv_graph_is<RESTKV_GRAPH_MOVES>,
};
