// One eviction of a whole cache: every (layer, KV head) is a task of its own. A task reads its head's cells, selects
// and moves them; other heads of the same cells lie in other bytes, so tasks never meet.

#include "evict.h"

#include "compact.h"
#include "graph/graph.h"
#include "methods/methods.h"
#include "parallel.h"

#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"

#include <algorithm>
#include <new>
#include <numeric>
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

// Positions of a head's cells, oldest first.
void restkv_cache::fill_pos(const layer_state & layer, uint32_t head_kv, const evict_plan & plan,
                            std::vector<int32_t> & pos) const {
    const uint32_t  n_held = held(layer, head_kv);
    const int32_t * table  = layer.table.data() + (size_t) head_kv * layer.budget;
    std::copy(table, table + n_held, pos.begin());
    std::copy(plan.tail_pos.begin(), plan.tail_pos.end(), pos.begin() + n_held);
}

restkv_view restkv_cache::head_view(const layer_state & layer, uint32_t head_kv, const layer_data & data,
                                    const std::vector<int32_t> & row_pos, const std::vector<int32_t> & row_slots,
                                    restkv_scratch & scratch) const {
    const uint32_t group = layer.n_head / layer.n_head_kv;
    const size_t   row   = tail_begin() - held(layer, head_kv) - layer.first;  // of the head's first cell

    restkv_view view;
    view.k        = data.k + row * layer.k->nb[1] + ggml_row_size(layer.k->type, (int64_t) head_kv * layer.d_k);
    view.v        = data.v + row * layer.v->nb[1] + ggml_row_size(layer.v->type, (int64_t) head_kv * layer.d_v);
    view.k_stride = layer.k->nb[1];
    view.v_stride = layer.v->nb[1];
    view.k_type   = layer.k->type;
    view.v_type   = layer.v->type;
    view.n_rows   = (uint32_t) row_pos.size();
    view.row_pos  = row_pos.data();
    view.group    = group;
    view.d_k      = layer.d_k;
    view.d_v      = layer.d_v;
    view.softcap  = kv.hparams.attn_soft_cap ? kv.hparams.f_attn_logit_softcapping : 0.0f;
    view.sinks    = data.sinks.empty() ? nullptr : data.sinks.data() + (size_t) head_kv * group;
    view.layer    = layer.il;
    view.head_kv  = head_kv;
    view.i_layer  = (uint32_t) (&layer - layers.data());
    view.n_layers = (uint32_t) layers.size();
    view.cursor   = cursor;
    view.wo       = layer.wo.empty() ? nullptr : layer.wo.data() + (size_t) head_kv * group * layer.d_v * layer.d_v;
    view.sums     = layer.sums.empty() ? nullptr : layer.sums.data() + (size_t) head_kv * params.capacity;

    if (method->uses_queries) {
        float * q = scratch.queries.data();
        for (uint32_t h = 0; h < group; ++h) {
            for (uint32_t i = 0; i < view.n_rows; ++i) {
                const float * row = data.ring.data() + (size_t) row_slots[i] * layer.n_head * layer.d_k +
                                    (size_t) (head_kv * group + h) * layer.d_k;
                for (uint32_t x = 0; x < layer.d_k; ++x) {
                    *q++ = row[x] * layer.kq_scale;
                }
            }
        }
        view.q = scratch.queries.data();
    }
    return view;
}

// Scores of a head's past cells: scratch.kept has the best, as many as are returned, and scratch.row all of them. Without
// `selects` only the scores.
uint32_t restkv_cache::score_task(const layer_state & layer, uint32_t head_kv, const evict_plan & plan,
                                  const layer_data & data, restkv_scratch & scratch, bool selects) const {
    const uint32_t n_doc = held(layer, head_kv) + (uint32_t) plan.tail_pos.size() - plan.n_guide;

    std::vector<int32_t> & pos = scratch.pos;
    fill_pos(layer, head_kv, plan, pos);
    if (n_doc <= layer.n_window || (!layer.mask && n_doc <= layer.budget)) {
        // a layer with a large budget goes on filling it
        std::iota(scratch.kept.begin(), scratch.kept.begin() + n_doc, 0);
        return n_doc - std::min(n_doc, layer.n_window);
    }

    restkv_view view = head_view(layer, head_kv, data, plan.row_pos, plan.row_slots, scratch);
    view.n_cells     = n_doc + plan.n_guide;
    view.n_past      = n_doc - layer.n_window;
    view.pos         = pos.data();

    const bool     drifts  = restkv_drifts(*method, params, plan, pos.data(), view.n_cells);
    const uint32_t n_plain = std::min(params.budget - params.window, view.n_past);
    const uint32_t n_keep  = std::min(layer.budget - layer.n_window, view.n_past);
    restkv_score_head(view, params, drifts ? n_plain : 0, selects ? n_keep : 0, scratch);
    return n_keep;
}

// The n_keep past cells of scratch.kept and the window move to the head's last rows before n_row_max. Cannot fail.
void restkv_cache::move_task(const layer_state & layer, uint32_t head_kv, const evict_plan & plan,
                             const layer_data & data, restkv_scratch & scratch, uint32_t n_keep,
                             layer_kept & out) const {
    const int64_t  t_start  = ggml_time_us();
    const uint32_t n_held   = held(layer, head_kv);
    const uint32_t n_doc    = n_held + (uint32_t) plan.tail_pos.size() - plan.n_guide;
    const uint32_t n_window = std::min(layer.n_window, n_doc);
    const uint32_t n_kept   = n_keep + n_window;

    int32_t * kept = scratch.kept.data();
    for (uint32_t i = 0; i < n_window; ++i) {
        kept[n_keep + i] = (int32_t) (n_doc - n_window + i);
    }
    const size_t  from = tail_begin() - n_held - layer.first;
    const int64_t to   = (int64_t) (n_row_max - n_kept - layer.first) - (int64_t) from;
    uint8_t *     k    = data.k + from * layer.k->nb[1] + ggml_row_size(layer.k->type, (int64_t) head_kv * layer.d_k);
    uint8_t *     v    = data.v + from * layer.v->nb[1] + ggml_row_size(layer.v->type, (int64_t) head_kv * layer.d_v);
    restkv_move_rows(k, layer.k->nb[1], ggml_row_size(layer.k->type, layer.d_k), kept, n_kept, to);
    restkv_move_rows(v, layer.v->nb[1], ggml_row_size(layer.v->type, layer.d_v), kept, n_kept, to);

    int32_t * table = out.table.data() + (size_t) head_kv * layer.budget;
    for (uint32_t i = 0; i < n_kept; ++i) {
        table[i] = scratch.pos[kept[i]];
    }
    if (data.sums) {
        float * sums = data.sums + (size_t) head_kv * params.capacity;
        for (uint32_t i = 0; i < n_kept; ++i) {
            sums[i] = sums[kept[i]];
        }
        std::fill(sums + n_kept, sums + plan.n_end, 0.0f);
    }
    out.held[head_kv] = n_kept;
    scratch.times.compact += ggml_time_us() - t_start;
}

// All KV heads of a layer keep one set, by the mean of their scores; so they hold the same positions at all times.
void restkv_cache::evict_layer_task(const layer_state & layer, const evict_plan & plan, const layer_data & data,
                                    restkv_scratch & scratch, layer_kept & out) const {
    const uint32_t     n_past = held(layer, 0) + (uint32_t) plan.tail_pos.size() - plan.n_guide - layer.n_window;
    uint32_t           n_keep = 0;
    std::vector<float> total(n_past, 0.0f);
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        n_keep = score_task(layer, h, plan, data, scratch, false);
        for (uint32_t j = 0; j < n_past; ++j) {
            total[j] += scratch.row[j];
        }
    }
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        restkv_select_top(total.data(), n_past, n_keep, scratch.kept.data());
        fill_pos(layer, h, plan, scratch.pos);
        move_task(layer, h, plan, data, scratch, n_keep, out);
    }
}

// One layer whose heads share their budgets: all heads are scored before any selects.
void restkv_cache::evict_heads(const layer_state & layer, const evict_plan & plan, const layer_data & data,
                               std::vector<restkv_scratch> & scratch, uint32_t n_threads, layer_kept & out) const {
    std::vector<std::vector<float>> rows(layer.n_head_kv);
    n_threads = std::min(n_threads, layer.n_head_kv);
    restkv_parallel(layer.n_head_kv, n_threads, [&](uint32_t h, uint32_t thread) {
        score_task(layer, h, plan, data, scratch[thread]);
        const uint32_t n_past = held(layer, h) + (uint32_t) plan.tail_pos.size() - plan.n_guide - layer.n_window;
        rows[h].assign(scratch[thread].row.begin(), scratch[thread].row.begin() + n_past);
    });

    std::vector<const float *> starts;
    std::vector<uint32_t>      n;
    for (const auto & row : rows) {
        starts.push_back(row.data());
        n.push_back((uint32_t) row.size());
    }
    const uint32_t              mean = params.budget - params.window;
    const std::vector<uint32_t> past =
        restkv_share_heads(starts, n, mean, armed.shares.floor, layer.budget - layer.n_window, true);

    restkv_parallel(layer.n_head_kv, n_threads, [&](uint32_t h, uint32_t thread) {
        restkv_scratch & s = scratch[thread];
        fill_pos(layer, h, plan, s.pos);
        restkv_select_top(rows[h].data(), n[h], past[h], s.kept.data());
        move_task(layer, h, plan, data, s, past[h], out);
    });
}

// Score and compact all layers. `moved` is set before the first row moves.
void restkv_cache::evict_cells(const evict_plan & plan, restkv_event & event, bool & moved) {
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
        kept.push_back({ std::vector<int32_t>(layer.table.size()), std::vector<uint32_t>(layer.n_head_kv) });
        data[l].sums = layers[l].sums.empty() ? nullptr : layers[l].sums.data();
        if (layer.sinks) {
            data[l].sinks.resize(layer.n_head);
            ggml_backend_tensor_get(layer.sinks, data[l].sinks.data(), 0, layer.n_head * sizeof(float));
        }
        if (layer.stages == RESTKV_STAGES_GRAPH) {
            as_graph.push_back(l);
            continue;
        }
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

    restkv_graph_scores scores;
    for (uint32_t t = 0; t < n_threads; ++t) {
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
    moved = true;
    restkv_parallel((uint32_t) tasks.size(), n_threads, [&](uint32_t task, uint32_t thread) {
        const auto [l, h] = tasks[task];
        evict_one(l, h, scratch[thread]);
    });
    for (const uint32_t l : joint) {
        evict_heads(layers[l], plan, data[l], scratch, n_threads, kept[l]);
    }

    for (const uint32_t l : as_graph) {
        evict_as_graph(layers[l], plan, data[l].sinks.empty() ? nullptr : data[l].sinks.data(), scratch, kept[l],
                       scores, event);
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
        ggml_backend_tensor_set(layer.v, data[l].v, 0, layer.budget * layer.v->nb[1]);
    }

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
    llama_memory_i * memory = lctx->get_memory();
    bool             moved  = false;
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
        if (iswa && !can_cut(kv, *iswa->get_swa(), pos_next)) {
            return restkv_fail(RESTKV_UNSUPPORTED, "the guide has overwritten cells of the sliding window: use a "
                                                   "shorter guide or a larger n_ubatch, and read the text again");
        }
        lctx->synchronize();
        observe();
        if (votes_lost) {
            return restkv_fail(RESTKV_NO_MEMORY, "memory ran out while the votes of the queries were counted: lower "
                                                 "the budget or the threads and read the text again");
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

        bind_graphs(lctx);
        const int64_t t_start = ggml_time_us() - us_observe;

        evict_plan plan;
        plan.n_end     = n;
        plan.n_guide   = n_guide;
        plan.row_pos   = w.pos;
        plan.row_slots = w.slots;
        for (uint32_t i = tail_begin(); i < n; ++i) {
            plan.tail_pos.push_back(pos_of(i));
        }

        restkv_event event = {};
        evict_cells(plan, event, moved);
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
        event_log.push_back(event);
        if (event_log.size() > EVENTS_MAX) {
            event_log.pop_front();
        }
        // what a caller of llama_decode reads when the batch does not fit even now
        restkv_fail(RESTKV_OK, "a batch must fit the " + std::to_string(params.capacity - params.budget) +
                                   " cells of the reserve: decode smaller batches");
        return RESTKV_OK;
    } catch (const std::exception & e) {
        const bool on_device = dynamic_cast<const std::runtime_error *>(&e) != nullptr;  // else memory on the host
        if (moved) {
            // some heads are compacted and some are not
            memory->clear(true);
            return restkv_fail(RESTKV_NO_MEMORY, (on_device ? std::string(e.what()) : "memory ran out") +
                                                     " during an eviction and the cache was lost: lower the budget or "
                                                     "the threads and read the text again");
        }
        if (on_device) {
            return restkv_fail(RESTKV_NO_MEMORY, std::string(e.what()) + ": nothing was evicted");
        }
        return restkv_fail(RESTKV_NO_MEMORY, "not enough memory for an eviction: lower the budget or the threads");
    }
}
