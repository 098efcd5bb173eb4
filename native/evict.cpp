// One eviction of a whole cache: every (layer, KV head) is a task of its own. A task reads its head's cells, selects
// and moves them; other heads of the same cells lie in other bytes, so tasks never meet.

#include "evict.h"

#include "graph/graph.h"
#include "methods/methods.h"
#include "parallel.h"

#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"

#include <algorithm>
#include <cstdio>
#include <new>
#include <stdexcept>

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

std::unique_ptr<llama_memory_context_i> restkv_cache::init_evict(llama_context * lctx) {
    return std::make_unique<evict_context>(*this, lctx);
}

// The rows that hold the queries of the last positions before pos_next, oldest first; an even number, so that the drift
// compares halves of one size.
restkv_cache::window restkv_cache::rows(llama_pos pos_next, uint32_t n_max) const {
    window w;
    for (llama_pos pos = std::max<llama_pos>(0, pos_next - (llama_pos) n_max); pos < pos_next; ++pos) {
        const uint32_t slot = (uint32_t) pos % (uint32_t) ring_pos.size();
        if (ring_pos[slot] == pos) {
            w.pos.push_back(pos);
            w.slots.push_back((int32_t) slot);
        }
    }
    if (method->pools && w.pos.size() % 2) {
        w.pos.erase(w.pos.begin());
        w.slots.erase(w.slots.begin());
    }
    w.n_rows = (uint32_t) w.pos.size();
    return w;
}

// Score and compact all layers.
void restkv_cache::evict_cells(const evict_plan & plan, restkv_event & event) {
    uint32_t group = 1, d_k = 1, d_v = 1;
    size_t   n_copy = 0;  // bytes of the largest layer that is copied to the host

    std::vector<layer_data>                    data(layers.size());
    std::vector<layer_kept>                    kept;
    std::vector<std::pair<uint32_t, uint32_t>> tasks;  // (layer, KV head) of the layers in host memory
    std::vector<uint32_t>                      joint;  // layers in host memory whose heads share their budgets
    std::vector<uint32_t>                      copied, as_graph;
    for (uint32_t l = 0; l < layers.size(); ++l) {
        const layer_state & layer = layers[l];
        group                     = std::max(group, layer.n_head / layer.n_head_kv);
        d_k                       = std::max(d_k, layer.d_k);
        d_v                       = std::max(d_v, layer.d_v);
        kept.push_back({ std::vector<int32_t>(layer.table.size()), std::vector<uint32_t>(layer.n_head_kv), {} });
        data[l].sums  = layers[l].sums.empty() ? nullptr : layers[l].sums.data();
        data[l].sinks = sinks_of(layer);
        if (layer.stages == RESTKV_STAGES_GRAPH) {
            as_graph.push_back(l);
            continue;
        }
        restkv_step("read");
        if (layer.ring) {
            data[l].ring.resize(ggml_nelements(layer.ring));
            ggml_backend_tensor_get(layer.ring, data[l].ring.data(), 0, ggml_nbytes(layer.ring));
        }
        if (layer.stages == RESTKV_STAGES_HOST) {
            copied.push_back(l);
            n_copy = std::max(n_copy, (plan.n_end - layer.first) * (layer.k->nb[1] + layer.v->nb[1]));
            continue;
        }
        data[l].k = (uint8_t *) layer.k->data;
        data[l].v = (uint8_t *) layer.v->data;
        if (layer.mask) {
            joint.push_back(l);
            continue;
        }
        for (uint32_t h = 0; h < (method->per_layer ? 1 : layer.n_head_kv); ++h) {
            tasks.push_back({ l, h });
        }
    }
    std::vector<restkv_scratch> scratch;  // [n_threads]

    uint32_t n_tasks = (uint32_t) tasks.size();
    for (const std::vector<uint32_t> * some : { &joint, &copied, &as_graph }) {
        for (const uint32_t l : *some) {
            n_tasks = std::max(n_tasks, layers[l].n_head_kv);
        }
    }
    const uint32_t       n_threads = restkv_threads(params.n_threads, n_tasks);
    const uint32_t       n_rows    = std::max<uint32_t>((uint32_t) plan.row_pos.size(), 1);
    std::vector<uint8_t> copy(n_copy);

    for (uint32_t t = 0; t < n_threads; ++t) {
        restkv_step("scratch");
        scratch.emplace_back(plan.n_end, group, d_k, d_v, n_rows);
    }

    const auto evict_one = [&](uint32_t l, uint32_t h, restkv_scratch & s) {
        if (method->per_layer) {
            evict_layer_task(layers[l], plan, data[l], s, kept[l]);
            return;
        }
        const uint32_t n_keep = score_task(layers[l], h, plan, data[l], s);
        move_task(layers[l], h, plan, data[l], s, n_keep, kept[l]);
    };
    restkv_parallel((uint32_t) tasks.size(), n_threads, [&](uint32_t task, uint32_t thread) {
        const auto [l, h] = tasks[task];
        evict_one(l, h, scratch[thread]);
    });
    for (const uint32_t l : joint) {
        evict_heads(layers[l], plan, data[l], scratch, n_threads, kept[l]);
    }

    if (!as_graph.empty()) {
        evict_as_graphs(as_graph, plan, data, scratch, kept, event);
    }
    for (const uint32_t l : copied) {
        const layer_state & layer = layers[l];
        const size_t        n_row = plan.n_end - layer.first;
        data[l].k                 = copy.data();
        data[l].v                 = copy.data() + n_row * layer.k->nb[1];
        ggml_backend_tensor_get(layer.k, data[l].k, 0, n_row * layer.k->nb[1]);
        ggml_backend_tensor_get(layer.v, data[l].v, 0, n_row * layer.v->nb[1]);
        if (layer.mask) {
            evict_heads(layer, plan, data[l], scratch, n_threads, kept[l]);
        } else {
            const uint32_t n = method->per_layer ? 1 : layer.n_head_kv;
            restkv_parallel(n, std::min(n_threads, n),
                            [&](uint32_t h, uint32_t thread) { evict_one(l, h, scratch[thread]); });
        }
        ggml_backend_tensor_set(layer.k, data[l].k, 0, layer.budget * layer.k->nb[1]);
        restkv_step("write");
        ggml_backend_tensor_set(layer.v, data[l].v, 0, layer.budget * layer.v->nb[1]);
    }

    plan.moved = true;
    restkv_step("tables");
    uint64_t n_before = 0, n_after = 0, n_heads = 0;
    for (uint32_t l = 0; l < layers.size(); ++l) {
        layer_state & layer = layers[l];
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            n_before += held(layer, h) + plan.tail_pos.size() - plan.n_guide;
            n_after += kept[l].held[h];
            event.bytes_moved +=
                kept[l].held[h] * (ggml_row_size(layer.k->type, layer.d_k) + ggml_row_size(layer.v->type, layer.d_v));
        }
        n_heads += layer.n_head_kv;
        layer.table = std::move(kept[l].table);
        layer.held  = std::move(kept[l].held);
    }
    event.n_cells = (uint32_t) (n_before / n_heads);
    event.n_kept  = (uint32_t) (n_after / n_heads);
    for (const restkv_scratch & s : scratch) {
        event.us_attend += s.times.attend / n_threads;
        event.us_score += s.times.score / n_threads;
        event.us_smooth += s.times.smooth / n_threads;
        event.us_select += s.times.select / n_threads;
        event.us_compact += s.times.compact / n_threads;
    }
    event.n_rows        = (uint32_t) plan.row_pos.size();
    event.n_threads     = n_threads;
    event.n_layer       = (uint32_t) layers.size();
    event.n_layer_graph = (uint32_t) as_graph.size();
    event.n_layer_host  = (uint32_t) copied.size();
    bytes_scratch       = n_threads * restkv_scratch::bytes(plan.n_end, group, d_k, d_v, n_rows) + n_copy;
}

// llama.cpp's table after an eviction: the window keeps its positions; the cells before it, which hold other positions
// in every head, get numbers below them, so that every later token sees them. Cells that nobody holds stay empty.
void restkv_cache::drop_cells(llama_pos pos_next) {
    uint32_t n_held = 0, n_window = n_row_max;
    for (const layer_state & layer : layers) {
        n_held   = std::max(n_held, *std::max_element(layer.held.begin(), layer.held.end()));
        n_window = std::min(n_window, layer.n_window);
    }
    n_table                = n_row_max;
    llama_kv_cells & cells = kv.v_cells[0];
    cells.reset();
    restkv_step("cells");
    for (uint32_t i = n_table - n_held; i < n_table; ++i) {
        const bool in_window = i + n_window >= n_table;
        cells.pos_set(i, in_window ? pos_next - (llama_pos) (n_table - i) : (llama_pos) (i - (n_table - n_held)));
        cells.seq_add(i, 0);
    }
    kv.v_heads[0] = n_table;
    show_cells();

    for (llama_pos & pos : ring_pos) {
        pos = pos >= pos_next ? -1 : pos;
    }
    pos_seen = std::min(pos_seen, pos_next);
}

restkv_status restkv_cache::evict(llama_context * lctx, uint32_t n_guide) {
    if (lost) {
        return say_lost();
    }
    llama_memory_i * memory = lctx->get_memory();
    evict_plan       plan;
    try {
        const llama_kv_cells & cells = kv.v_cells[0];
        const uint32_t         n     = n_end();
        restkv_fail(RESTKV_OK, "");

        if (n_guide > 0 && n_guide >= n_used()) {
            return restkv_fail(RESTKV_INVALID, "a guide of " + std::to_string(n_guide) + " tokens with " +
                                                   std::to_string(n_used()) + " cells in use: decode the guide first");
        }
        if (n_guide > 0 &&
            (dynamic_cast<llama_memory_hybrid *>(memory) || dynamic_cast<llama_memory_hybrid_iswa *>(memory))) {
            return restkv_fail(RESTKV_UNSUPPORTED,
                               "a model with recurrent layers cannot forget a guide: use prefill=stream");
        }
        const uint32_t n_doc = n - n_guide;
        for (uint32_t i = tail_begin(); i < n; ++i) {
            if (cells.is_empty(i) || (i > tail_begin() && cells.pos_get(i) != cells.pos_get(i - 1) + 1)) {
                return restkv_fail(RESTKV_UNSUPPORTED, "positions of the text are missing in the cache: read it again");
            }
        }
        if (n_doc < n_table) {
            return restkv_fail(RESTKV_INVALID, "the guide reaches back before the last eviction");
        }
        const llama_pos pos_next = n_used() > n_guide ? pos_of(n_doc - 1) + 1 : 0;
        const auto      iswa     = n_guide > 0 ? dynamic_cast<llama_kv_cache_iswa *>(memory) : nullptr;
        if (iswa && !can_cut(*iswa->get_swa(), 0, pos_next, -1)) {
            return restkv_fail(RESTKV_UNSUPPORTED, "the guide has overwritten cells of the sliding window: use a "
                                                   "shorter guide or a larger n_ubatch, and read the text again");
        }
        lctx->synchronize();
        write_masks();
        observe(lctx->get_sched());
        if (votes_lost[0]) {
            return lose(*memory, votes_lost, "while the votes of the queries were counted");
        }
        if (n_doc <= n_row_max) {
            if (n_guide > 0) {
                memory->seq_rm(0, pos_next, -1);
            }
            return RESTKV_NOTHING;
        }

        const window w = method->accumulates ? window{} : rows(pos_of(n - 1) + 1, params.window);
        for (const layer_state & layer : layers) {
            if (method->uses_queries && (!layer.captured || layer.has_bias)) {
                return restkv_fail(RESTKV_UNSUPPORTED, "layer " + std::to_string(layer.il) +
                                                           " has an attention of its own that leaves no queries: use "
                                                           "method streamingllm");
            }
        }
        if (method->uses_queries && !method->accumulates && w.n_rows == 0) {
            return restkv_fail(RESTKV_UNSUPPORTED, "no queries of the last positions are stored: decode the next "
                                                   "tokens in pieces that fit the free cells");
        }

        bind_graphs(lctx->get_sched());
        const int64_t t_start = ggml_time_us() - us_observe;

        restkv_step("plan");
        plan.n_end     = n;
        plan.n_guide   = n_guide;
        plan.row_pos   = w.pos;
        plan.row_slots = w.slots;
        for (uint32_t i = tail_begin(); i < n; ++i) {
            plan.tail_pos.push_back(pos_of(i));
        }

        restkv_event event = {};
        evict_cells(plan, event);
        event.us_attend += us_observe;
        event.n_rows += n_voted;
        us_observe = 0;
        n_voted    = 0;
        if (method->advance) {
            cursor = method->advance(params, (uint32_t) layers.size(), n_doc, cursor);
        }

        drop_cells(pos_next);
        pos_exact = pos_next;
        if (iswa) {
            iswa->get_swa()->seq_rm(0, pos_next, -1);
        }

        event.id       = n_evictions++;
        event.pos_next = pos_next;
        event.n_guide  = n_guide;
        event.us_total = ggml_time_us() - t_start;
        n_evicted += event.n_cells - event.n_kept;
        restkv_step("log");
        event_log.push_back(event);
        if (event_log.size() > EVENTS_MAX) {
            event_log.pop_front();
        }
        // what a caller of llama_decode reads when the batch does not fit even now
        return say_full(RESTKV_OK);
    } catch (...) {
        return give_up(*memory, plan.moved);
    }
}

bool restkv_reason(char (&why)[RESTKV_REASON_MAX]) noexcept {
    const auto say = [&](const char * text) { snprintf(why, sizeof(why), "%s", text); };
    say("memory ran out");
    try {
        throw;
    } catch (const std::bad_alloc &) {
        return false;
    } catch (const std::length_error &) {
        return false;
    } catch (const std::exception & e) {
        say(e.what());
    } catch (...) {
        say("an error without a name");
    }
    return true;
}

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
    lost = true;
    return restkv_fail(RESTKV_NO_MEMORY, text);
}

restkv_status restkv_cache::say_lost() const noexcept {
    return restkv_fail(RESTKV_NO_MEMORY,
                       "the cache was lost in an eviction that failed: clear it and read the text again "
                       "from its start");
}
