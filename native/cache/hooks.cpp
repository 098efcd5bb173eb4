#include "cache/hooks.h"

#include "cache/recaller.h"

#include "api/status.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdio>
#include <limits>

thread_local std::unique_ptr<restkv_settings> restkv_pending;

// ---- memory ------------------------------------------------------------------------------------

void restkv_cache::clear(bool data) {
    core->clear();
    llama_kv_cache::clear(data);
}

bool restkv_cache::may_cut(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    const llama_pos pos_max = core->cells->seq_pos_max(0);
    // the cells are those of sequence 0
    if (seq_id > 0 || p0 > pos_max || p1 <= p0 || (p0 <= 0 && p1 > pos_max)) {
        return true;
    }
    if (p1 <= pos_max) {
        restkv_fail(RESTKV_UNSUPPORTED, "a cache that evicts can only be cut at its end");
        return false;
    }
    if (p0 < core->seq.pos_exact && !core->recaller) {
        char text[128];
        snprintf(text, sizeof(text), "cells up to position %d have been evicted: read the text again from its start",
                 (int) core->seq.pos_exact);
        restkv_fail(RESTKV_GONE, text);
        return false;
    }
    return true;
}

bool restkv_cache::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    p0 = p0 < 0 ? 0 : p0;
    p1 = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;
    if (!may_cut(seq_id, p0, p1)) {
        return false;
    }
    const llama_pos pos_max = core->cells->seq_pos_max(0);
    if (seq_id <= 0 && p0 <= 0 && p1 > pos_max) {
        core->clear();
    } else if (seq_id <= 0 && p0 <= pos_max && p1 > p0) {
        if (core->recaller) {
            return cut(p0);
        }
        core->seq.forget_from(p0);
    }
    return llama_kv_cache::seq_rm(seq_id, p0, p1);
}

// With an archive, at any position that is in the text. What fails on the way leaves no cache, and false.
bool restkv_cache::cut(llama_pos p0) {
    restkv_sequence & seq = core->seq;
    try {
        if (p0 >= seq.pos_exact) {
            core->recaller->forget_from(p0);
            seq.forget_from(p0);
            return llama_kv_cache::seq_rm(0, p0, -1);
        }
        if (core->lctx) {
            core->lctx->synchronize();
        }
        core->recaller->cut(p0);
    } catch (...) {
        restkv_caught(RESTKV_NO_MEMORY);
        char text[RESTKV_SENTENCE_MAX];
        snprintf(text, sizeof(text), "%s: the text could not be cut, and the cache was lost: read the text again",
                 restkv_last_error());
        clear(false);
        seq.lost = true;
        restkv_fail(RESTKV_GONE, text);
        return false;
    }
    if ((uint32_t) p0 > core->n_row_max) {
        set_cells(p0);
        seq.pos_exact = p0;
    } else {
        // all of it is in the cells, as if nothing had been evicted
        llama_kv_cells & cells = v_cells[0];
        cells.reset();
        for (llama_pos pos = 0; pos < p0; ++pos) {
            cells.pos_set((uint32_t) pos, pos);
            cells.seq_add((uint32_t) pos, 0);
        }
        v_heads[0]    = (uint32_t) p0;
        seq.n_table   = 0;
        seq.pos_exact = 0;
    }
    seq.forget_from(p0);
    return true;
}

void restkv_cache::seq_keep(llama_seq_id seq_id) {
    if (seq_id != 0) {
        core->clear();
    }
    llama_kv_cache::seq_keep(seq_id);
}

static void refuse(const char * operation) {
    char text[160];
    snprintf(text, sizeof(text),
             "%s is not possible in a cache that evicts: its KV heads hold different positions in the same cells",
             operation);
    restkv_fail(RESTKV_UNSUPPORTED, text);
    LLAMA_LOG_ERROR("%s\n", text);
}

void restkv_cache::seq_cp(llama_seq_id, llama_seq_id, llama_pos, llama_pos) {
    refuse("seq_cp");
}

void restkv_cache::seq_add(llama_seq_id, llama_pos, llama_pos, llama_pos) {
    refuse("seq_add");
}

void restkv_cache::seq_div(llama_seq_id, llama_pos, llama_pos, int) {
    refuse("seq_div");
}

// ---- cells -------------------------------------------------------------------------------------

// Cells are always used in order: the next ones are the free ones behind the last.
llama_kv_cache::slot_info restkv_cache::find_slot(const llama_ubatch & ubatch, bool) const {
    const uint32_t n = core->n_end();
    if (core->seq.lost || ubatch.n_tokens > get_size() - n) {
        return {};
    }
    slot_info slot = { 0, 0, { 0 }, { {} } };
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        slot.idxs[0].push_back(n + i);
    }
    return slot;
}

// A view of the rows from `skip` on.
static ggml_tensor * rows_from(ggml_context * ctx, ggml_tensor * view, uint32_t skip) {
    return skip == 0 ? view :
                       ggml_view_4d(ctx, view->view_src, view->ne[0], view->ne[1], view->ne[2], view->ne[3],
                                    view->nb[1], view->nb[2], view->nb[3], view->view_offs + skip * view->nb[2]);
}

ggml_tensor * restkv_cache::get_k(ggml_context * ctx, int32_t il, uint32_t n_kv, const slot_info & sinfo) const {
    const uint32_t skip = core->seen_rows(il, n_kv);
    return rows_from(ctx, llama_kv_cache::get_k(ctx, il, n_kv, sinfo), skip);
}

ggml_tensor * restkv_cache::get_v(ggml_context * ctx, int32_t il, uint32_t n_kv, const slot_info & sinfo) const {
    const uint32_t skip = core->seen_rows(il, n_kv);
    return rows_from(ctx, llama_kv_cache::get_v(ctx, il, n_kv, sinfo), skip);
}

// ---- graphs ------------------------------------------------------------------------------------

restkv_cache * restkv_cache::of(const llama_kv_cache_context * context) {
    return context ? dynamic_cast<restkv_cache *>(context->kv) : nullptr;
}
