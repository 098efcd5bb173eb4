// The tasks of one eviction in host memory: one KV head, or one layer whose heads keep one set or share their budgets.

#include "cache/eviction.h"
#include "cache/fault.h"
#include "stages/compact.h"
#include "stages/parallel.h"

#include <algorithm>
#include <numeric>

// Positions of a head's cells, oldest first.
void restkv_eviction::fill_pos(uint32_t l, uint32_t h, std::vector<int32_t> & pos) const {
    const uint32_t  n_held = seq.held(l, h);
    const int32_t * table  = seq.layers[l].table.data() + (size_t) h * layers[l].budget;
    std::copy(table, table + n_held, pos.begin());
    std::copy(plan.tail_pos.begin(), plan.tail_pos.end(), pos.begin() + n_held);
}

// Scores of a head's past cells: s.kept has the best, as many as are returned, and s.row all of them. Without `selects`
// only the scores.
uint32_t restkv_eviction::score_task(uint32_t l, uint32_t h, restkv_scratch & s, bool selects) {
    const restkv_layer & layer = layers[l];
    const uint32_t       n     = n_doc(l, h);

    restkv_step("score");
    fill_pos(l, h, s.pos);
    if (n <= layer.n_window || (!layer.mask && n <= layer.budget)) {
        // a layer with a large budget goes on filling it
        std::iota(s.kept.begin(), s.kept.begin() + n, 0);
        return n - std::min(n, layer.n_window);
    }

    restkv_view view = restkv_view_of(core, l, h, data[l], plan.window, s);
    view.n_cells     = n + plan.n_guide;
    view.n_past      = n - layer.n_window;
    view.pos         = s.pos.data();

    const uint32_t n_plain = std::min(params.budget - params.window, view.n_past);
    const uint32_t n_keep  = std::min(layer.budget - layer.n_window, view.n_past);
    restkv_score_head(view, params, drifts(view.pos, view.n_cells) ? n_plain : 0, selects ? n_keep : 0, s);
    return n_keep;
}

// The n_keep past cells of s.kept and the window move to the head's last rows before n_row_max.
void restkv_eviction::move_task(uint32_t l, uint32_t h, uint32_t n_keep, restkv_scratch & s) {
    const int64_t t_start = ggml_time_us();
    plan.moved            = true;

    const restkv_layer & layer    = layers[l];
    const uint32_t       n        = n_doc(l, h);
    const uint32_t       n_window = std::min(layer.n_window, n);
    const uint32_t       n_kept   = n_keep + n_window;

    int32_t * cells = s.kept.data();
    for (uint32_t i = 0; i < n_window; ++i) {
        cells[n_keep + i] = (int32_t) (n - n_window + i);
    }
    const size_t  from = seq.tail_begin() - seq.held(l, h) - layer.first;
    const int64_t to   = (int64_t) (core.n_row_max - n_kept - layer.first) - (int64_t) from;
    uint8_t *     k    = data[l].k + from * layer.k->nb[1] + ggml_row_size(layer.k->type, (int64_t) h * layer.d_k);
    uint8_t *     v    = data[l].v + from * layer.v->nb[1] + ggml_row_size(layer.v->type, (int64_t) h * layer.d_v);
    restkv_move_rows(k, layer.k->nb[1], ggml_row_size(layer.k->type, layer.d_k), cells, n_kept, to);
    restkv_step("move");
    restkv_move_rows(v, layer.v->nb[1], ggml_row_size(layer.v->type, layer.d_v), cells, n_kept, to);

    int32_t * table = kept[l].table.data() + (size_t) h * layer.budget;
    for (uint32_t i = 0; i < n_kept; ++i) {
        table[i] = s.pos[cells[i]];
    }
    move_votes(l, h, cells, n_kept);
    kept[l].held[h] = n_kept;
    s.times.compact += ggml_time_us() - t_start;
}

// The votes of cells that move go with them.
void restkv_eviction::move_votes(uint32_t l, uint32_t h, const int32_t * kept_cells, uint32_t n_kept) {
    if (!data[l].sums) {
        return;
    }
    float * sums = data[l].sums + (size_t) h * params.capacity;
    for (uint32_t i = 0; i < n_kept; ++i) {
        sums[i] = sums[kept_cells[i]];
    }
    std::fill(sums + n_kept, sums + plan.n_end, 0.0f);
}

void restkv_eviction::evict_head(uint32_t l, uint32_t h, restkv_scratch & s) {
    if (method.per_layer) {
        evict_one_set(l, s);
        return;
    }
    const uint32_t n_keep = score_task(l, h, s, true);
    move_task(l, h, n_keep, s);
}

// All KV heads of a layer keep one set, by the mean of their scores; so they hold the same positions at all times.
void restkv_eviction::evict_one_set(uint32_t l, restkv_scratch & s) {
    const uint32_t n_keep = choose_one_set(l, n_past(l, 0), s, [&](uint32_t h) { score_task(l, h, s, false); });
    for (uint32_t h = 0; h < layers[l].n_head_kv; ++h) {
        fill_pos(l, h, s.pos);
        move_task(l, h, n_keep, s);
    }
}

// The best n past cells of a whole layer, by the sum of its heads' scores, into s.kept; returns how many. score_of: fills
// s.row with the scores of a KV head.
uint32_t restkv_eviction::choose_one_set(uint32_t l, uint32_t n, restkv_scratch & s,
                                         const std::function<void(uint32_t)> & score_of) {
    const restkv_layer & layer = layers[l];
    std::vector<float>   total(n, 0.0f);
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        score_of(h);
        for (uint32_t j = 0; j < n; ++j) {
            total[j] += s.row[j];
        }
    }
    return restkv_select_top(total.data(), n, layer.budget - layer.n_window, s.kept.data());
}

void restkv_eviction::evict_shared(uint32_t l) {
    share_heads(
        l, [&](uint32_t h, restkv_scratch & s) { return score_task(l, h, s, true); },
        [&](uint32_t h, uint32_t n_keep, restkv_scratch & s) {
            fill_pos(l, h, s.pos);
            move_task(l, h, n_keep, s);
        });
}

// One layer whose heads share their budgets: all heads are scored before any selects.
void restkv_eviction::share_heads(uint32_t l, const choose_head & choose, const keep_head & keep) {
    const restkv_layer &            layer = layers[l];
    const uint32_t                  n_run = std::min(n_threads, layer.n_head_kv);
    std::vector<std::vector<float>> rows(layer.n_head_kv);
    restkv_parallel(layer.n_head_kv, n_run, [&](uint32_t h, uint32_t thread) {
        restkv_scratch & s = scratch[thread];
        choose(h, s);
        rows[h].assign(s.row.begin(), s.row.begin() + n_past(l, h));
    });

    std::vector<const float *> starts;
    std::vector<uint32_t>      n;
    for (const auto & row : rows) {
        starts.push_back(row.data());
        n.push_back((uint32_t) row.size());
    }
    const uint32_t              mean = params.budget - params.window;
    const std::vector<uint32_t> past =
        restkv_share_heads(starts, n, mean, core.settings.shares.floor, layer.budget - layer.n_window, true);

    restkv_parallel(layer.n_head_kv, n_run, [&](uint32_t h, uint32_t thread) {
        restkv_scratch & s = scratch[thread];
        restkv_select_top(rows[h].data(), n[h], past[h], s.kept.data());
        keep(h, past[h], s);
    });
}
