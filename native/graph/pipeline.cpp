// One eviction of the layers that run as graphs. Their devices are never left without work: while the host selects the
// cells of a layer, the next one is scored, and the rows of the one before move.

#include "restkv-cache.h"

#include "evict.h"
#include "graph.h"
#include "methods/methods.h"
#include "parallel.h"

#include <algorithm>
#include <numeric>

namespace {

// Leaves nothing under way, also when something failed: whoever sees the cache next must find its rows at rest.
class at_rest {
public:
    at_rest(const std::vector<std::unique_ptr<restkv_graph>> & graphs) : graphs(graphs) {}

    ~at_rest() { wait(); }

    void wait() const {
        for (const auto & graph : graphs) {
            graph->wait();
        }
    }

private:
    const std::vector<std::unique_ptr<restkv_graph>> & graphs;
};

}  // namespace

// What the host keeps of a layer from its scores on until its cells are selected. A head that holds fewer cells than
// another one of its layer has hidden cells before its first.
struct layer_turn {
    restkv_graph_cells    cells;
    std::vector<int32_t>  pos;        // [n_head_kv][N] positions; of hidden cells that of the first one
    std::vector<uint32_t> hidden;     // [n_head_kv] cells before the first one
    std::vector<uint32_t> tops;       // [n_head_kv] cells that the drift is measured over
    std::vector<uint8_t>  drifts;     // [n_head_kv]
    std::vector<int32_t>  n_visible;  // [n_rows]
    bool                  scored;     // else all cells stay
};

void restkv_cache::start_turn(const layer_state & layer, const evict_plan & plan, layer_turn & turn) const {
    const uint32_t n_tail = (uint32_t) plan.tail_pos.size();
    uint32_t       n_most = 0;
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        n_most = std::max(n_most, held(layer, h));
    }
    const uint32_t N     = n_most + n_tail;
    const uint32_t n_doc = N - plan.n_guide;

    turn.scored = layer.mask ? n_doc > layer.n_window : n_doc > std::max(layer.n_window, layer.budget);
    turn.pos.clear();
    turn.hidden.clear();
    turn.tops.clear();
    turn.drifts.clear();
    turn.n_visible.clear();
    uint32_t n_drift = 0;
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        const uint32_t  n     = held(layer, h);
        const int32_t * table = layer.table.data() + (size_t) h * layer.budget;
        turn.hidden.push_back(n_most - n);
        turn.pos.insert(turn.pos.end(), n_most - n, n > 0 ? table[0] : plan.tail_pos[0]);
        turn.pos.insert(turn.pos.end(), table, table + n);
        turn.pos.insert(turn.pos.end(), plan.tail_pos.begin(), plan.tail_pos.end());
        const int32_t * pos = turn.pos.data() + (size_t) h * N;
        turn.drifts.push_back(turn.scored && restkv_drifts(*method, params, plan, pos, N));
        turn.tops.push_back(std::min(params.budget - params.window, n_past(layer, h, plan)));
        n_drift = turn.drifts.back() ? std::max(n_drift, turn.tops.back()) : n_drift;
    }
    // cells of the window hold the same positions everywhere, and older cells are seen by every row
    for (const int32_t row : plan.row_pos) {
        const auto first = turn.pos.begin();
        turn.n_visible.push_back((int32_t) (std::upper_bound(first, first + N, row) - first));
    }
    turn.cells            = {};
    turn.cells.first      = tail_begin() - n_most - layer.first;
    turn.cells.n_cells    = N;
    turn.cells.n_past     = n_doc - std::min(n_doc, layer.n_window);
    turn.cells.n_visible  = turn.n_visible.data();
    turn.cells.drift_top  = n_drift;
    turn.cells.drift_tops = layer.mask ? turn.tops.data() : nullptr;
    turn.cells.pos        = turn.pos.data();
}

// A KV head's past cells: the best in s.kept, as many as are returned, and one score of each in s.row.
uint32_t restkv_cache::choose_task(const layer_state & layer, uint32_t h, const evict_plan & plan,
                                   const layer_data & data, const layer_turn & turn, const restkv_graph_scores & scores,
                                   restkv_scratch & s) const {
    const bool     scores_cells = restkv_graph_scores_cells(restkv_graph_kind_of(params));
    const uint32_t group        = layer.n_head / layer.n_head_kv;
    const uint32_t hidden       = turn.hidden[h];

    restkv_view view;
    view.n_cells  = turn.cells.n_cells - hidden;
    view.n_past   = n_past(layer, h, plan);
    view.pos      = turn.pos.data() + (size_t) h * turn.cells.n_cells + hidden;
    view.group    = group;
    view.layer    = layer.il;
    view.head_kv  = h;
    view.i_layer  = (uint32_t) (&layer - layers.data());
    view.n_layers = (uint32_t) layers.size();
    view.cursor   = cursor;
    view.sums     = data.sums ? data.sums + (size_t) h * params.capacity : nullptr;
    if (!turn.scored) {
        std::iota(s.kept.begin(), s.kept.begin() + view.n_past, 0);
        return view.n_past;
    }

    const int64_t t_start = ggml_time_us();
    restkv_step("score");
    if (!scores_cells) {
        method->score(view, params, 0, s);
    }
    for (uint32_t g = 0; scores_cells && g < group; ++g) {
        const uint32_t head = h * group + g;
        const float *  wo   = layer.wo.empty() ? nullptr : layer.wo.data() + (size_t) head * layer.d_v * layer.d_v;
        float *        raw  = s.raw.data() + (size_t) g * s.n_pad;
        restkv_graph_raw(scores, params, graph_layer(layer), head, wo, hidden, raw);
        const uint32_t top = turn.cells.drift_tops ? turn.tops[h] : turn.cells.drift_top;
        s.drift[g]         = turn.drifts[h] ? restkv_graph_drift(scores, head, top) : 0.0;
    }
    s.times.score += ggml_time_us() - t_start;
    const uint32_t n_keep = std::min(layer.budget - layer.n_window, view.n_past);
    restkv_choose(view, params, turn.drifts[h], n_keep, s);
    return n_keep;
}

// The n_keep past cells of s.kept and the window, into s.kept and out.
void restkv_cache::keep_task(const layer_state & layer, uint32_t h, const evict_plan & plan, const layer_data & data,
                             const layer_turn & turn, uint32_t n_keep, restkv_scratch & s, layer_kept & out) const {
    const uint32_t n_doc    = turn.cells.n_cells - turn.hidden[h] - plan.n_guide;
    const uint32_t n_window = std::min(layer.n_window, n_doc);
    const uint32_t n_kept   = n_keep + n_window;
    std::iota(s.kept.begin() + n_keep, s.kept.begin() + n_kept, (int32_t) (n_doc - n_window));
    plan.moved = plan.moved || data.sums != nullptr;
    move_votes(data, h, s.kept.data(), n_kept, plan.n_end);

    const int32_t * pos   = turn.pos.data() + (size_t) h * turn.cells.n_cells + turn.hidden[h];
    int32_t *       table = out.table.data() + (size_t) h * layer.budget;
    int32_t *       from  = out.from.data() + (size_t) h * layer.budget;
    for (uint32_t i = 0; i < n_kept; ++i) {
        table[i] = pos[s.kept[i]];
        from[i]  = (int32_t) (turn.cells.first + turn.hidden[h]) + s.kept[i];
    }
    out.held[h] = n_kept;
}

// Every head's cells to its last rows before n_row_max.
void restkv_cache::queue_moves(const layer_state & layer, const layer_kept & out) const {
    const uint32_t       n     = *std::max_element(out.held.begin(), out.held.end());
    const uint32_t       first = n_row_max - n - layer.first;
    std::vector<int32_t> from;
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        for (uint32_t i = 0; i < n - out.held[h]; ++i) {
            from.push_back((int32_t) (first + i));  // holds nothing
        }
        const auto own = out.from.begin() + (size_t) h * layer.budget;
        from.insert(from.end(), own, own + out.held[h]);
    }
    layer.graph->move(graph_layer(layer), from.data(), n, first);
}

void restkv_cache::evict_as_graphs(const std::vector<uint32_t> & members, const evict_plan & plan,
                                   const std::vector<layer_data> & data, std::vector<restkv_scratch> & scratch,
                                   std::vector<layer_kept> & out, restkv_event & event) const {
    const restkv_graph_kind kind         = restkv_graph_kind_of(params);
    const bool              scores_cells = restkv_graph_scores_cells(kind);
    const bool              attends      = scores_cells && restkv_graph_attends(kind);
    const uint32_t          n_rows       = attends ? (uint32_t) plan.row_pos.size() : 0;
    const at_rest           end(graphs);

    std::vector<float>          weights = attends ? restkv_graph_weights(params, n_rows) : std::vector<float>();
    std::vector<restkv_graph *> started;
    layer_turn                  turns[2];  // this layer's and the next one's

    const auto begin = [&](size_t i) {
        const layer_state & layer = layers[members[i]];
        layer_turn &        turn  = turns[i % 2];
        start_turn(layer, plan, turn);
        if (!scores_cells || !turn.scored) {
            return;
        }
        restkv_step("begin");
        turn.cells.row_slots = plan.row_slots.data();
        turn.cells.n_rows    = n_rows;
        turn.cells.weights   = weights.empty() ? nullptr : weights.data();
        restkv_graph & graph = *layer.graph;
        if (std::find(started.begin(), started.end(), &graph) == started.end()) {
            graph.start(turn.cells);
            started.push_back(&graph);
        }
        restkv_graph_layer shape = graph_layer(layer);
        shape.sinks              = data[members[i]].sinks.empty() ? nullptr : data[members[i]].sinks.data();
        graph.begin(shape, turn.cells);
    };

    for (size_t i = 0; i < members.size(); ++i) {
        const layer_state & layer   = layers[members[i]];
        const layer_turn &  turn    = turns[i % 2];
        const bool          more    = i + 1 < members.size();
        const bool          early   = more && (layers[members[i + 1]].graph != layer.graph || layer.graph->ahead());
        int64_t             t_start = ggml_time_us();
        if (i == 0) {
            begin(0);
        }
        if (early) {
            begin(i + 1);
        }
        const bool                waits  = scores_cells && turn.scored;
        const restkv_graph_scores scores = waits ? layer.graph->finish() : restkv_graph_scores{};
        if (more && !early) {
            begin(i + 1);
        }
        event.us_attend += ggml_time_us() - t_start;

        const layer_data & own  = data[members[i]];
        layer_kept &       kept = out[members[i]];
        kept.from.resize((size_t) layer.n_head_kv * layer.budget);
        const uint32_t n_threads = std::min((uint32_t) scratch.size(), layer.n_head_kv);
        const auto     choose    = [&](uint32_t h, restkv_scratch & s) {
            return choose_task(layer, h, plan, own, turn, scores, s);
        };
        const auto keep = [&](uint32_t h, uint32_t n_keep, restkv_scratch & s) {
            keep_task(layer, h, plan, own, turn, n_keep, s, kept);
        };
        if (method->per_layer) {
            restkv_scratch & s      = scratch[0];
            const uint32_t   n_keep = choose_one_set(layer, turn.cells.n_past, s, [&](uint32_t h) { choose(h, s); });
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                keep(h, n_keep, s);
            }
        } else if (layer.mask) {
            share_heads(layer, plan, scratch, n_threads, choose, keep);
        } else {
            restkv_parallel(layer.n_head_kv, n_threads,
                            [&](uint32_t h, uint32_t thread) { keep(h, choose(h, scratch[thread]), scratch[thread]); });
        }

        t_start    = ggml_time_us();
        plan.moved = true;
        queue_moves(layer, kept);
        restkv_step("move");
        event.us_compact += ggml_time_us() - t_start;
    }
    const int64_t t_start = ggml_time_us();
    restkv_step("wait");
    end.wait();
    event.us_compact += ggml_time_us() - t_start;
}
