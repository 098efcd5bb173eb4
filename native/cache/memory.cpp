// The memory of a context around a cache that evicts: of which types it may be, and what may be cut from it as a whole.

#include "cache/hooks.h"

#include "api/status.h"

#include "llama-hparams.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"

#include <cstdio>
#include <limits>
#include <stdexcept>
#include <typeinfo>

namespace {

// The parts of a memory that hold attention: all positions, and those of sliding windows or null.
struct parts {
    const llama_kv_cache * base = nullptr;
    const llama_kv_cache * swa  = nullptr;
};

template <typename T>
const T * exactly(const llama_memory_i & memory) {
    return typeid(memory) == typeid(T) ? static_cast<const T *>(&memory) : nullptr;
}

// Types that are known: their other parts keep what they need by themselves when cells of `base` go. A type derived from
// one of them may not.
parts parts_of(const llama_memory_i & memory) {
    if (const auto * kv = exactly<llama_kv_cache>(memory)) {
        return { kv, nullptr };
    }
    if (const auto * kv = exactly<restkv_cache>(memory)) {
        return { kv, nullptr };
    }
    if (const auto * iswa = exactly<llama_kv_cache_iswa>(memory)) {
        return { iswa->get_base(), iswa->get_swa() };
    }
    if (const auto * hybrid = exactly<llama_memory_hybrid>(memory)) {
        return { hybrid->get_mem_attn(), nullptr };
    }
    if (const auto * hybrid = exactly<llama_memory_hybrid_iswa>(memory)) {
        return { hybrid->get_mem_attn()->get_base(), hybrid->get_mem_attn()->get_swa() };
    }
    return {};
}

}  // namespace

thread_local const restkv_cache * restkv_cache::claimed = nullptr;

restkv_cache * restkv_cache::of(const llama_memory_i & memory) {
    return dynamic_cast<restkv_cache *>(const_cast<llama_kv_cache *>(parts_of(memory).base));
}

void restkv_cache::admit(const llama_memory_i * memory) {
    const bool           armed = restkv_pending != nullptr;
    const restkv_cache * taker = claimed;
    restkv_pending.reset();
    claimed = nullptr;
    if (!armed && (!taker || (memory && of(*memory) == taker))) {
        return;
    }
    // nobody took the settings, or what took them is a part of something unknown
    const bool   nothing = !taker && (!memory || exactly<llama_memory_recurrent>(*memory));
    const char * reason = nothing ?
                              "this model has no layer with full attention: there is nothing to evict" :
                              "this cache cannot evict: llama.cpp keeps the layers of this model in a memory of a type "
                              "that eviction does not know";
    throw restkv_error(restkv_fail(RESTKV_UNSUPPORTED, reason), reason);
}

bool restkv_cache::can_rm(const llama_memory_i & memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const parts          found = parts_of(memory);
    const restkv_cache * cache = dynamic_cast<const restkv_cache *>(found.base);
    p0                         = p0 < 0 ? 0 : p0;
    p1                         = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;
    return (!cache || cache->may_cut(seq_id, p0, p1)) && (!found.swa || can_cut(*found.swa, seq_id, p0, p1));
}

bool restkv_cache::can_cut(const llama_kv_cache & swa, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const llama_seq_id first_seq = seq_id < 0 ? 0 : seq_id;
    const llama_seq_id n_seq     = seq_id < 0 ? (llama_seq_id) swa.n_seq_max : seq_id + 1;
    for (llama_seq_id s = first_seq; s < n_seq; ++s) {
        const llama_pos pos_min = swa.seq_pos_min(s);
        const llama_pos pos_max = swa.seq_pos_max(s);
        if (p0 <= 0 || pos_min <= 0 || p0 > pos_max || (p1 >= 0 && p1 <= pos_max)) {
            continue;
        }
        // the cell before the first one must be out of sight at p0
        if (pos_min < p0 && llama_hparams::is_masked_swa(swa.n_swa, swa.swa_type, pos_min - 1, p0)) {
            continue;
        }
        char text[128];
        snprintf(text, sizeof(text),
                 "the sliding window before position %d has been overwritten: read the text again from its start",
                 (int) p0);
        restkv_fail(RESTKV_GONE, text);
        return false;
    }
    return true;
}
