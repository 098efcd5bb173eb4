// The tasks of one eviction: one KV head, or one layer whose heads keep one set or share their budgets.

#include "evict.h"

#include "compact.h"
#include "methods/methods.h"
#include "parallel.h"

#include "llama-kv-cache.h"

#include <algorithm>
#include <numeric>

// Cells of a head that an eviction chooses from: all but the window and a guide behind it.
uint32_t restkv_cache::n_past(const layer_state & layer, uint32_t head_kv, const evict_plan & plan) const {
    const uint32_t n_doc = held(layer, head_kv) + (uint32_t) plan.tail_pos.size() - plan.n_guide;
    return n_doc - std::min(n_doc, layer.n_window);
}

std::vector<float> restkv_cache::sinks_of(const layer_state & layer) const {
    std::vector<float> sinks(layer.sinks ? layer.n_head : 0);
    if (layer.sinks) {
        ggml_backend_tensor_get(layer.sinks, sinks.data(), 0, sinks.size() * sizeof(float));
    }
    return sinks;
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
    restkv_step("score");
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

// The n_keep past cells of scratch.kept and the window move to the head's last rows before n_row_max.
void restkv_cache::move_task(const layer_state & layer, uint32_t head_kv, const evict_plan & plan,
                             const layer_data & data, restkv_scratch & scratch, uint32_t n_keep,
                             layer_kept & out) const {
    const int64_t t_start = ggml_time_us();
    plan.moved            = true;

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
    restkv_step("move");
    restkv_move_rows(v, layer.v->nb[1], ggml_row_size(layer.v->type, layer.d_v), kept, n_kept, to);

    int32_t * table = out.table.data() + (size_t) head_kv * layer.budget;
    for (uint32_t i = 0; i < n_kept; ++i) {
        table[i] = scratch.pos[kept[i]];
    }
    move_votes(data, head_kv, kept, n_kept, plan.n_end);
    out.held[head_kv] = n_kept;
    scratch.times.compact += ggml_time_us() - t_start;
}

// The best past cells of a whole layer, by the sum of its heads' scores, into s.kept; returns how many. score_of: fills
// s.row with the scores of a KV head, n_past of them.
uint32_t restkv_cache::choose_one_set(const layer_state & layer, uint32_t n_past, restkv_scratch & s,
                                      const std::function<void(uint32_t)> & score_of) const {
    std::vector<float> total(n_past, 0.0f);
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        score_of(h);
        for (uint32_t j = 0; j < n_past; ++j) {
            total[j] += s.row[j];
        }
    }
    return restkv_select_top(total.data(), n_past, layer.budget - layer.n_window, s.kept.data());
}

// The votes of cells that move go with them.
void restkv_cache::move_votes(const layer_data & data, uint32_t head_kv, const int32_t * kept, uint32_t n_kept,
                              uint32_t n_end) const {
    if (!data.sums) {
        return;
    }
    float * sums = data.sums + (size_t) head_kv * params.capacity;
    for (uint32_t i = 0; i < n_kept; ++i) {
        sums[i] = sums[kept[i]];
    }
    std::fill(sums + n_kept, sums + n_end, 0.0f);
}

// All KV heads of a layer keep one set, by the mean of their scores; so they hold the same positions at all times.
void restkv_cache::evict_layer_task(const layer_state & layer, const evict_plan & plan, const layer_data & data,
                                    restkv_scratch & scratch, layer_kept & out) const {
    const uint32_t n_keep = choose_one_set(layer, n_past(layer, 0, plan), scratch,
                                           [&](uint32_t h) { score_task(layer, h, plan, data, scratch, false); });
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        fill_pos(layer, h, plan, scratch.pos);
        move_task(layer, h, plan, data, scratch, n_keep, out);
    }
}

// One layer whose heads share their budgets: all heads are scored before any selects. choose: fills s.row with the scores
// of a KV head. keep: its best cells, so many in s.kept, stay.
void restkv_cache::share_heads(const layer_state & layer, const evict_plan & plan,
                               std::vector<restkv_scratch> & scratch, uint32_t n_threads,
                               const std::function<uint32_t(uint32_t, restkv_scratch &)> &       choose,
                               const std::function<void(uint32_t, uint32_t, restkv_scratch &)> & keep) const {
    std::vector<std::vector<float>> rows(layer.n_head_kv);
    n_threads = std::min(n_threads, layer.n_head_kv);
    restkv_parallel(layer.n_head_kv, n_threads, [&](uint32_t h, uint32_t thread) {
        restkv_scratch & s = scratch[thread];
        choose(h, s);
        rows[h].assign(s.row.begin(), s.row.begin() + n_past(layer, h, plan));
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
        restkv_select_top(rows[h].data(), n[h], past[h], s.kept.data());
        keep(h, past[h], s);
    });
}

void restkv_cache::evict_heads(const layer_state & layer, const evict_plan & plan, const layer_data & data,
                               std::vector<restkv_scratch> & scratch, uint32_t n_threads, layer_kept & out) const {
    share_heads(
        layer, plan, scratch, n_threads,
        [&](uint32_t h, restkv_scratch & s) { return score_task(layer, h, plan, data, s); },
        [&](uint32_t h, uint32_t n_keep, restkv_scratch & s) {
            fill_pos(layer, h, plan, s.pos);
            move_task(layer, h, plan, data, s, n_keep, out);
        });
}
