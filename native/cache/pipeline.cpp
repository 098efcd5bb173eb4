// One eviction of the layers that run as graphs. Their devices are never left without work: while the host selects the
// cells of a layer, the next one is scored, and the rows of the one before move.

#include "cache/eviction.h"
#include "cache/fault.h"
#include "stages/parallel.h"

#include <algorithm>
#include <numeric>

namespace {

// Leaves nothing under way, also when something failed: whoever sees the cache next must find no row moving.
class waits_at_end {
public:
    waits_at_end(const restkv_devices & devices) : devices(devices) {}

    ~waits_at_end() { devices.wait(); }

private:
    const restkv_devices & devices;
};

}  // namespace

// What the host keeps of a layer from its scores on until its cells are selected. A head that holds fewer cells than
// another one of its layer has hidden cells before its first.
struct restkv_eviction::scored {
    restkv_graph_cells    cells;
    std::vector<int32_t>  pos;        // [n_head_kv][N] positions; of hidden cells that of the first one
    std::vector<uint32_t> hidden;     // [n_head_kv] cells before the first one
    std::vector<uint32_t> tops;       // [n_head_kv] cells that the drift is measured over
    std::vector<uint8_t>  drifts;     // [n_head_kv]
    std::vector<int32_t>  n_visible;  // [n_rows]
    bool                  chooses;    // else all cells stay
};

void restkv_eviction::prepare(uint32_t l, scored & out) const {
    const restkv_layer & layer  = layers[l];
    const uint32_t       n_tail = (uint32_t) plan.tail_pos.size();
    uint32_t             n_most = 0;
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        n_most = std::max(n_most, seq.held(l, h));
    }
    const uint32_t N = n_most + n_tail;
    const uint32_t n = N - plan.n_guide;

    out.chooses = layer.mask ? n > layer.n_window : n > std::max(layer.n_window, layer.budget);
    out.pos.clear();
    out.hidden.clear();
    out.tops.clear();
    out.drifts.clear();
    out.n_visible.clear();
    uint32_t n_drift = 0;
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        const uint32_t  n_held = seq.held(l, h);
        const int32_t * table  = seq.layers[l].table.data() + (size_t) h * layer.budget;
        out.hidden.push_back(n_most - n_held);
        out.pos.insert(out.pos.end(), n_most - n_held, n_held > 0 ? table[0] : plan.tail_pos[0]);
        out.pos.insert(out.pos.end(), table, table + n_held);
        out.pos.insert(out.pos.end(), plan.tail_pos.begin(), plan.tail_pos.end());
        out.drifts.push_back(out.chooses && drifts(out.pos.data() + (size_t) h * N, N));
        out.tops.push_back(std::min(params.budget - params.window, n_past(l, h)));
        n_drift = out.drifts.back() ? std::max(n_drift, out.tops.back()) : n_drift;
    }
    // cells of the window hold the same positions everywhere, and older cells are seen by every row
    for (const int32_t row : plan.window.pos) {
        const auto first = out.pos.begin();
        out.n_visible.push_back((int32_t) (std::upper_bound(first, first + N, row) - first));
    }
    out.cells            = {};
    out.cells.first      = seq.tail_begin() - n_most - layer.first;
    out.cells.n_cells    = N;
    out.cells.n_past     = n - std::min(n, layer.n_window);
    out.cells.n_visible  = out.n_visible.data();
    out.cells.drift_top  = n_drift;
    out.cells.drift_tops = layer.mask ? out.tops.data() : nullptr;
    out.cells.pos        = out.pos.data();
}

// A KV head's past cells: the best in s.kept, as many as are returned, and one score of each in s.row.
uint32_t restkv_eviction::choose_task(uint32_t l, uint32_t h, const scored & in, const restkv_graph_scores & scores,
                                      restkv_scratch & s) {
    const restkv_layer & layer        = layers[l];
    const bool           scores_cells = restkv_graph_scores_cells(restkv_graph_kind_of(params));
    const uint32_t       hidden       = in.hidden[h];

    restkv_view view;
    view.n_cells  = in.cells.n_cells - hidden;
    view.n_past   = n_past(l, h);
    view.pos      = in.pos.data() + (size_t) h * in.cells.n_cells + hidden;
    view.group    = layer.group();
    view.layer    = layer.il;
    view.head_kv  = h;
    view.i_layer  = l;
    view.n_layers = (uint32_t) layers.size();
    view.cursor   = seq.cursor;
    view.sums     = data[l].sums ? data[l].sums + (size_t) h * params.capacity : nullptr;
    if (!in.chooses) {
        std::iota(s.kept.begin(), s.kept.begin() + view.n_past, 0);
        return view.n_past;
    }

    const int64_t t_start = ggml_time_us();
    restkv_step("score");
    if (!scores_cells) {
        method.score(view, params, 0, s);
    }
    for (uint32_t g = 0; scores_cells && g < view.group; ++g) {
        const uint32_t head = h * view.group + g;
        const float *  wo   = layer.wo.empty() ? nullptr : layer.wo.data() + (size_t) head * layer.d_v * layer.d_v;
        float *        raw  = s.raw.data() + (size_t) g * s.n_pad;
        restkv_graph_raw(scores, params, layer.graph_layer(), head, wo, hidden, raw);
        const uint32_t top = in.cells.drift_tops ? in.tops[h] : in.cells.drift_top;
        s.drift[g]         = in.drifts[h] ? restkv_graph_drift(scores, head, top) : 0.0;
    }
    s.times.score += ggml_time_us() - t_start;
    const uint32_t n_keep = std::min(layer.budget - layer.n_window, view.n_past);
    restkv_choose(view, params, in.drifts[h], n_keep, s);
    return n_keep;
}

// The n_keep past cells of s.kept and the window, into s.kept and the survivors.
void restkv_eviction::keep_task(uint32_t l, uint32_t h, const scored & in, uint32_t n_keep, restkv_scratch & s) {
    const restkv_layer & layer    = layers[l];
    const uint32_t       n        = in.cells.n_cells - in.hidden[h] - plan.n_guide;
    const uint32_t       n_window = std::min(layer.n_window, n);
    const uint32_t       n_kept   = n_keep + n_window;
    std::iota(s.kept.begin() + n_keep, s.kept.begin() + n_kept, (int32_t) (n - n_window));
    plan.moved = plan.moved || data[l].sums != nullptr;
    move_votes(l, h, s.kept.data(), n_kept);

    const int32_t * pos   = in.pos.data() + (size_t) h * in.cells.n_cells + in.hidden[h];
    int32_t *       table = kept[l].table.data() + (size_t) h * layer.budget;
    int32_t *       from  = kept[l].from.data() + (size_t) h * layer.budget;
    for (uint32_t i = 0; i < n_kept; ++i) {
        table[i] = pos[s.kept[i]];
        from[i]  = (int32_t) (in.cells.first + in.hidden[h]) + s.kept[i];
    }
    kept[l].held[h] = n_kept;
}

// Every head's cells to its last rows before n_row_max.
void restkv_eviction::queue_moves(uint32_t l) const {
    const restkv_layer &     layer = layers[l];
    const restkv_survivors & out   = kept[l];
    const uint32_t           n     = *std::max_element(out.held.begin(), out.held.end());
    const uint32_t           first = core.n_row_max - n - layer.first;
    std::vector<int32_t>     from;
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        for (uint32_t i = 0; i < n - out.held[h]; ++i) {
            from.push_back((int32_t) (first + i));  // holds nothing
        }
        const auto own = out.from.begin() + (size_t) h * layer.budget;
        from.insert(from.end(), own, own + out.held[h]);
    }
    layer.graph->move(layer.graph_layer(), from.data(), n, first);
}

void restkv_eviction::evict_as_graphs(restkv_event & event) {
    const restkv_graph_kind kind         = restkv_graph_kind_of(params);
    const bool              scores_cells = restkv_graph_scores_cells(kind);
    const bool              attends      = scores_cells && restkv_graph_attends(kind);
    const uint32_t          n_rows       = attends ? (uint32_t) plan.window.pos.size() : 0;
    const waits_at_end      end(core.devices);

    std::vector<float>          weights = attends ? restkv_graph_weights(params, n_rows) : std::vector<float>();
    std::vector<restkv_graph *> started;
    scored                      ahead[2];  // this layer's and the next one's

    const auto begin = [&](size_t i) {
        const uint32_t       l     = as_graph[i];
        const restkv_layer & layer = layers[l];
        scored &             next  = ahead[i % 2];
        prepare(l, next);
        if (!scores_cells || !next.chooses) {
            return;
        }
        restkv_step("begin");
        next.cells.row_slots = plan.window.slots.data();
        next.cells.n_rows    = n_rows;
        next.cells.weights   = weights.empty() ? nullptr : weights.data();
        restkv_graph & graph = *layer.graph;
        if (std::find(started.begin(), started.end(), &graph) == started.end()) {
            graph.start(next.cells);
            started.push_back(&graph);
        }
        restkv_graph_layer shape = layer.graph_layer();
        shape.sinks              = data[l].sinks.empty() ? nullptr : data[l].sinks.data();
        graph.begin(shape, next.cells);
    };

    for (size_t i = 0; i < as_graph.size(); ++i) {
        const uint32_t       l       = as_graph[i];
        const restkv_layer & layer   = layers[l];
        const scored &       now     = ahead[i % 2];
        const bool           more    = i + 1 < as_graph.size();
        const bool           early   = more && (layers[as_graph[i + 1]].graph != layer.graph || layer.graph->ahead());
        int64_t              t_start = ggml_time_us();
        if (i == 0) {
            begin(0);
        }
        if (early) {
            begin(i + 1);
        }
        const bool                waits  = scores_cells && now.chooses;
        const restkv_graph_scores scores = waits ? layer.graph->finish() : restkv_graph_scores{};
        if (more && !early) {
            begin(i + 1);
        }
        event.us_attend += ggml_time_us() - t_start;

        kept[l].from.resize((size_t) layer.n_head_kv * layer.budget);
        const auto choose = [&](uint32_t h, restkv_scratch & s) { return choose_task(l, h, now, scores, s); };
        const auto keep   = [&](uint32_t h, uint32_t n_keep, restkv_scratch & s) { keep_task(l, h, now, n_keep, s); };
        if (method.per_layer) {
            restkv_scratch & s      = scratch[0];
            const uint32_t   n_keep = choose_one_set(l, now.cells.n_past, s, [&](uint32_t h) { choose(h, s); });
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                keep(h, n_keep, s);
            }
        } else if (layer.mask) {
            share_heads(l, choose, keep);
        } else {
            restkv_parallel(layer.n_head_kv, std::min((uint32_t) scratch.size(), layer.n_head_kv),
                            [&](uint32_t h, uint32_t thread) { keep(h, choose(h, scratch[thread]), scratch[thread]); });
        }

        t_start    = ggml_time_us();
        plan.moved = true;
        queue_moves(l);
        restkv_step("move");
        event.us_compact += ggml_time_us() - t_start;
    }
    const int64_t t_start = ggml_time_us();
    restkv_step("wait");
    core.devices.wait();
    event.us_compact += ggml_time_us() - t_start;
}
