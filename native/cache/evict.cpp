// When a cache evicts: what llama_decode asks for when no cell is free, what the API asks for, and what is left when an
// eviction fails.

#include "api/status.h"
#include "cache/eviction.h"
#include "cache/failure.h"
#include "cache/fault.h"
#include "cache/hooks.h"
#include "cache/recaller.h"
#include "cache/votes.h"

#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"

#include <algorithm>
#include <cstdio>

namespace {

// llama_context::decode asks for an update when no slot is free, applies it and tries again.
class evict_context : public llama_memory_context_i {
public:
    evict_context(restkv_cache & cache, llama_context * lctx) : cache(cache), lctx(lctx) {}

    bool next() override { return false; }

    bool apply() override { return cache.evict(lctx, 0) == RESTKV_OK; }

    const llama_ubatch & get_ubatch() const override { return ubatch; }

    llama_memory_status get_status() const override { return LLAMA_MEMORY_STATUS_SUCCESS; }

private:
    restkv_cache &  cache;
    llama_context * lctx;
    llama_ubatch    ubatch = {};
};

}  // namespace

llama_memory_context_ptr restkv_cache::init_update(llama_context * lctx, bool optimize) {
    core->lctx = lctx;
    if (optimize && core->seq.lost) {
        say_lost();
    } else if (optimize && core->n_end() > core->n_row_max) {
        return std::make_unique<evict_context>(*this, lctx);
    }
    return llama_kv_cache::init_update(lctx, optimize);
}

// llama.cpp's table after an eviction: the window keeps its positions; the cells before it, which hold other positions
// in every head, get numbers below them, so that every later token sees them. Cells that nobody holds stay empty.
void restkv_cache::set_cells(llama_pos pos_next) {
    restkv_sequence & seq    = core->seq;
    uint32_t          n_held = 0, n_window = core->n_row_max;
    for (size_t l = 0; l < seq.layers.size(); ++l) {
        n_held   = std::max(n_held, *std::max_element(seq.layers[l].held.begin(), seq.layers[l].held.end()));
        n_window = std::min(n_window, core->layers[l].n_window);
    }
    const uint32_t   n = seq.n_table = core->n_row_max;
    llama_kv_cells & cells           = v_cells[0];
    cells.reset();
    restkv_step("cells");
    for (uint32_t i = n - n_held; i < n; ++i) {
        const bool in_window = i + n_window >= n;
        cells.pos_set(i, in_window ? pos_next - (llama_pos) (n - i) : (llama_pos) (i - (n - n_held)));
        cells.seq_add(i, 0);
    }
    v_heads[0] = n;
    core->show_cells();
}

// What an eviction or a recall starts from: nothing has changed yet.
restkv_status restkv_cache::look_at_text(llama_context * lctx, uint32_t n_guide, text_end & out) const {
    const restkv_sequence & seq    = core->seq;
    llama_memory_i *        memory = lctx->get_memory();
    const llama_kv_cells &  cells  = v_cells[0];
    const uint32_t          tail   = seq.tail_begin();
    out.n                          = core->n_end();
    if (n_guide > 0 && n_guide >= core->n_used()) {
        return restkv_fail(RESTKV_INVALID, "a guide of " + std::to_string(n_guide) + " tokens with " +
                                               std::to_string(core->n_used()) +
                                               " cells in use: decode the guide first");
    }
    if (n_guide > 0 &&
        (dynamic_cast<llama_memory_hybrid *>(memory) || dynamic_cast<llama_memory_hybrid_iswa *>(memory))) {
        return restkv_fail(RESTKV_UNSUPPORTED,
                           "a model with recurrent layers cannot forget a guide: use prefill=stream");
    }
    out.n_doc = out.n - n_guide;
    for (uint32_t i = tail; i < out.n; ++i) {
        if (cells.is_empty(i) || (i > tail && cells.pos_get(i) != cells.pos_get(i - 1) + 1)) {
            return restkv_fail(RESTKV_GONE, "positions of the text are missing in the cache: read it again");
        }
    }
    if (out.n_doc < seq.n_table) {
        return restkv_fail(RESTKV_INVALID, "the guide reaches back before the last eviction");
    }
    out.pos_next = core->n_used() > n_guide ? core->pos_of(out.n_doc - 1) + 1 : 0;
    out.iswa     = n_guide > 0 ? dynamic_cast<llama_kv_cache_iswa *>(memory) : nullptr;
    if (out.iswa && !can_cut(*out.iswa->get_swa(), 0, out.pos_next, -1)) {
        return restkv_fail(RESTKV_GONE, "the guide has overwritten cells of the sliding window: use a shorter "
                                        "guide or a larger n_ubatch, and read the text again");
    }
    return RESTKV_OK;
}

// What is not in the archive yet goes there, before it can be dropped.
restkv_status restkv_cache::archive_text(uint32_t n_doc) const {
    if (!core->recaller) {
        return RESTKV_OK;
    }
    try {
        core->recaller->archive_tail(n_doc);
    } catch (...) {
        const restkv_status status = restkv_caught(RESTKV_NO_MEMORY);
        char                text[RESTKV_SENTENCE_MAX];
        snprintf(text, sizeof(text), "%s: nothing was evicted", restkv_last_error());
        return restkv_fail(status, text);
    }
    return RESTKV_OK;
}

// The cells hold other rows now, and the text goes on at pos_next.
void restkv_cache::settle(const text_end & end) {
    set_cells(end.pos_next);
    core->seq.forget_from(end.pos_next);
    core->seq.pos_exact = end.pos_next;
    if (end.iswa) {
        end.iswa->get_swa()->seq_rm(0, end.pos_next, -1);
    }
}

void restkv_cache::log(restkv_event & event, const text_end & end, uint32_t n_guide, int64_t t_start) {
    restkv_sequence & seq = core->seq;
    event.id              = seq.n_evictions++;
    event.pos_next        = end.pos_next;
    event.n_guide         = n_guide;
    event.us_total        = ggml_time_us() - t_start;
    seq.n_evicted += event.n_cells - event.n_kept;
    restkv_step("log");
    core->events.push_back(event);
    if (core->events.size() > restkv_core::EVENTS_MAX) {
        core->events.pop_front();
    }
}

restkv_status restkv_cache::evict(llama_context * lctx, uint32_t n_guide) {
    restkv_sequence & seq = core->seq;
    if (seq.lost) {
        return say_lost();
    }
    llama_memory_i * memory = lctx->get_memory();
    restkv_plan      plan;
    try {
        text_end       end;
        const uint32_t tail = seq.tail_begin();
        restkv_clear_error();
        if (const restkv_status status = look_at_text(lctx, n_guide, end)) {
            return status;
        }
        lctx->synchronize();
        core->write_masks();
        restkv_vote(*core, lctx->get_sched());
        if (seq.votes_lost[0]) {
            return lose(*memory, seq.votes_lost, "while the votes of the queries were counted");
        }
        if (end.n_doc <= core->n_row_max) {
            if (n_guide > 0) {
                memory->seq_rm(0, end.pos_next, -1);
            }
            return RESTKV_NOTHING;
        }
        if (const restkv_status status = archive_text(end.n_doc)) {
            return status;
        }
        const int64_t t_start = ggml_time_us() - seq.us_votes;
        restkv_event  event   = {};
        if (core->recaller && core->recaller->reading && n_guide == 0) {
            core->recaller->hold_first();
            plan.moved    = true;
            event.n_cells = end.n;
            event.n_kept  = core->n_row_max;
            event.n_layer = (uint32_t) core->layers.size();
            settle(end);
            log(event, end, 0, t_start);
            return RESTKV_OK;
        }

        const restkv_method & method = core->method;
        for (const restkv_layer & layer : core->layers) {
            if (method.uses_queries && (!layer.captured || layer.has_bias)) {
                return restkv_fail(RESTKV_UNSUPPORTED, "layer " + std::to_string(layer.il) +
                                                           " has an attention of its own that leaves no queries: use "
                                                           "method streamingllm");
            }
        }
        if (!method.accumulates) {
            plan.window = seq.rows(core->pos_of(end.n - 1) + 1, core->params.window, method.pools);
        }
        if (method.uses_queries && !method.accumulates && plan.window.pos.empty()) {
            return restkv_fail(RESTKV_GONE, "no queries of the last positions are stored: decode the next tokens in "
                                            "pieces that fit the free cells");
        }

        core->devices.bind(lctx->get_sched());

        restkv_step("plan");
        plan.n_end   = end.n;
        plan.n_guide = n_guide;
        for (uint32_t i = tail; i < end.n; ++i) {
            plan.tail_pos.push_back(core->pos_of(i));
        }

        restkv_eviction(*core, plan).run(event);
        event.us_attend += seq.us_votes;
        event.n_rows += seq.n_voted;
        seq.us_votes = 0;
        seq.n_voted  = 0;
        if (method.advance) {
            seq.cursor = method.advance(core->params, (uint32_t) core->layers.size(), end.n_doc, seq.cursor);
        }
        settle(end);
        log(event, end, n_guide, t_start);
        return RESTKV_OK;
    } catch (...) {
        return give_up(*memory, plan.moved);
    }
}

restkv_status restkv_cache::recall(llama_context * lctx, uint32_t n_guide) {
    restkv_sequence & seq = core->seq;
    if (seq.lost) {
        return say_lost();
    }
    if (!core->recaller) {
        return restkv_fail(RESTKV_INVALID, "this cache has no archive: there is nothing to recall from");
    }
    llama_memory_i * memory = lctx->get_memory();
    bool             moved  = false;
    try {
        text_end end;
        restkv_clear_error();
        if (const restkv_status status = look_at_text(lctx, n_guide, end)) {
            return status;
        }
        lctx->synchronize();
        if (seq.n_table == 0) {
            if (n_guide > 0) {
                memory->seq_rm(0, end.pos_next, -1);
            }
            return RESTKV_NOTHING;
        }
        if (const restkv_status status = archive_text(end.n_doc)) {
            return status;
        }
        const uint32_t          n_ask  = n_guide > 0 ? n_guide : core->params.window;
        restkv_sequence::window window = seq.rows(end.pos_next + (llama_pos) n_guide, n_ask, false);
        if (window.pos.empty()) {
            return restkv_fail(RESTKV_GONE, "no queries of the last positions are stored: decode at least one token "
                                            "before a recall");
        }
        const std::string why = core->recaller->recall(window, (uint32_t) end.pos_next, end.n_doc, end.n, moved);
        settle(end);
        return why.empty() ? RESTKV_OK :
                             restkv_fail(RESTKV_ARCHIVE, why + ": the cells kept what they held, as far as it fits");
    } catch (const restkv_error & e) {
        if (moved) {
            return give_up(*memory, moved);
        }
        char text[RESTKV_SENTENCE_MAX];
        snprintf(text, sizeof(text), "%s: the cells are as they were", e.what());
        return restkv_fail(e.status, text);
    } catch (...) {
        return give_up(*memory, moved);
    }
}

// ---- failures ----------------------------------------------------------------------------------

// Inside a catch block, and perhaps without memory: an eviction failed. Until something moved the cache is as it was.
restkv_status restkv_cache::give_up(llama_memory_i & memory, bool moved) noexcept {
    char       why[RESTKV_REASON_MAX];
    const bool has_memory = restkv_reason(why);
    if (moved) {
        return lose(memory, why, "during an eviction");
    }
    if (!has_memory) {
        return restkv_fail(RESTKV_NO_MEMORY, "not enough memory for an eviction: lower the budget or the threads");
    }
    char text[2 * RESTKV_REASON_MAX];
    snprintf(text, sizeof(text), "%s: nothing was evicted", why);
    return restkv_fail(RESTKV_NO_MEMORY, text);
}

// What the cache holds is worth nothing any more. llama_decode tries again after an eviction, also one that failed, so
// the empty cache takes no token until it is cleared.
restkv_status restkv_cache::lose(llama_memory_i & memory, const char * why, const char * when) noexcept {
    char text[2 * RESTKV_REASON_MAX];
    snprintf(text, sizeof(text),
             "%s %s and the cache was lost: lower the budget or the threads and read the text again", why, when);
    for (const bool data : { true, false }) {
        try {
            memory.clear(data);
            break;
        } catch (...) {
            continue;  // the tables at least
        }
    }
    core->seq.lost = true;
    return restkv_fail(RESTKV_GONE, text);
}

restkv_status restkv_cache::say_lost() const noexcept {
    return restkv_fail(RESTKV_GONE, "the cache was lost in an eviction that failed: clear it and read the text again "
                                    "from its start");
}
