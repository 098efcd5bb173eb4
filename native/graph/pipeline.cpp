// One eviction of the layers that run as graphs. Their devices are never left without work: while the host selects the
// cells of a layer, the next one is scored, and the rows of the one before move.

#include "restkv-cache.h"

#include "evict.h"
#include "graph.h"
#include "methods/methods.h"
#include "parallel.h"

#include <algorithm>

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

// What the host keeps of a layer from its scores on until its cells are selected.
struct layer_turn {
    std::vector<int32_t> pos;     // [n_head_kv][N]
    std::vector<uint8_t> drifts;  // [n_head_kv]
};

}  // namespace

// Positions of all cells of a layer: [n_head_kv][n_cells].
std::vector<int32_t> restkv_cache::positions(const layer_state & layer, const evict_plan & plan) const {
    std::vector<int32_t> pos;
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        const auto from = layer.table.begin() + (size_t) h * layer.budget;
        pos.insert(pos.end(), from, from + held(layer, h));
        pos.insert(pos.end(), plan.tail_pos.begin(), plan.tail_pos.end());
    }
    return pos;
}

// A KV head's past cells: the best in s.kept, and one score of each in s.row.
void restkv_cache::choose_task(const layer_state & layer, uint32_t h, const evict_plan & plan, const layer_data & data,
                               const int32_t * pos, bool drifts, const restkv_graph_scores & scores,
                               restkv_scratch & s) const {
    const bool     moves  = restkv_graph_kind_of(params) == RESTKV_GRAPH_MOVES;
    const uint32_t group  = layer.n_head / layer.n_head_kv;
    const uint32_t n_keep = layer.budget - layer.n_window;

    restkv_view view;
    view.n_cells  = plan.n_end;
    view.n_past   = plan.n_end - plan.n_guide - layer.n_window;
    view.pos      = pos;
    view.group    = group;
    view.layer    = layer.il;
    view.head_kv  = h;
    view.i_layer  = (uint32_t) (&layer - layers.data());
    view.n_layers = (uint32_t) layers.size();
    view.cursor   = cursor;
    view.sums     = data.sums ? data.sums + (size_t) h * params.capacity : nullptr;

    const int64_t t_start = ggml_time_us();
    if (moves) {
        method->score(view, params, 0, s);
    }
    for (uint32_t g = 0; !moves && g < group; ++g) {
        const uint32_t head = h * group + g;
        const float *  wo   = layer.wo.empty() ? nullptr : layer.wo.data() + (size_t) head * layer.d_v * layer.d_v;
        restkv_graph_raw(scores, params, graph_layer(layer), head, wo, s.raw.data() + (size_t) g * s.n_pad);
        s.drift[g] = drifts ? restkv_graph_drift(scores, head) : 0.0;
    }
    s.times.score += ggml_time_us() - t_start;
    restkv_choose(view, params, drifts, n_keep, s);
}

// The chosen past cells and the window, into kept[budget] and out.
void restkv_cache::keep_task(const layer_state & layer, uint32_t h, const evict_plan & plan, const layer_data & data,
                             const int32_t * pos, const restkv_scratch & s, int32_t * kept, layer_kept & out) const {
    const uint32_t n_keep = layer.budget - layer.n_window;
    const uint32_t n_doc  = plan.n_end - plan.n_guide;
    std::copy_n(s.kept.begin(), n_keep, kept);
    for (uint32_t i = 0; i < layer.n_window; ++i) {
        kept[n_keep + i] = (int32_t) (n_doc - layer.n_window + i);
    }
    move_votes(data, h, kept, layer.budget, plan.n_end);
    for (uint32_t i = 0; i < layer.budget; ++i) {
        out.table[(size_t) h * layer.budget + i] = pos[kept[i]];
    }
    out.held[h] = layer.budget;
}

void restkv_cache::evict_as_graphs(const std::vector<uint32_t> & members, const evict_plan & plan,
                                   const std::vector<layer_data> & data, std::vector<restkv_scratch> & scratch,
                                   std::vector<layer_kept> & out, restkv_event & event) const {
    const uint32_t          N    = plan.n_end;  // every head has as many: budgets are not shared out here
    const restkv_graph_kind kind = restkv_graph_kind_of(params);
    const at_rest           end(graphs);

    restkv_graph_cells          cells;
    std::vector<float>          weights;
    std::vector<int32_t>        n_visible;
    std::vector<restkv_graph *> started;
    layer_turn                  turns[2];  // this layer's and the next one's

    const auto begin = [&](size_t i) {
        const layer_state & layer = layers[members[i]];
        layer_turn &        turn  = turns[i % 2];
        turn.pos                  = positions(layer, plan);
        turn.drifts.resize(layer.n_head_kv);
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            turn.drifts[h] = restkv_drifts(*method, params, plan, turn.pos.data() + (size_t) h * N, N);
        }
        if (kind == RESTKV_GRAPH_MOVES) {
            return;
        }
        if (i == 0) {
            if (restkv_graph_attends(kind)) {
                weights = restkv_graph_weights(params, (uint32_t) plan.row_pos.size());
            }
            // cells of the window hold the same positions everywhere, and older cells are seen by every row
            for (const int32_t row : plan.row_pos) {
                const auto first = turn.pos.begin();
                n_visible.push_back((int32_t) (std::upper_bound(first, first + N, row) - first));
            }
            cells.n_cells   = N;
            cells.n_past    = N - plan.n_guide - layer.n_window;
            cells.row_slots = plan.row_slots.data();
            cells.n_rows    = restkv_graph_attends(kind) ? (uint32_t) plan.row_pos.size() : 0;
            cells.weights   = weights.empty() ? nullptr : weights.data();
            cells.n_visible = n_visible.data();
        }
        const bool drifts    = std::find(turn.drifts.begin(), turn.drifts.end(), 1) != turn.drifts.end();
        cells.drift_top      = drifts ? layer.budget - layer.n_window : 0;
        cells.pos            = turn.pos.data();
        restkv_graph & graph = *layer.graph;
        if (std::find(started.begin(), started.end(), &graph) == started.end()) {
            graph.start(cells);
            started.push_back(&graph);
        }
        restkv_graph_layer shape = graph_layer(layer);
        shape.sinks              = data[members[i]].sinks.empty() ? nullptr : data[members[i]].sinks.data();
        graph.begin(shape, cells);
    };

    std::vector<int32_t> kept;
    for (size_t i = 0; i < members.size(); ++i) {
        const layer_state & layer   = layers[members[i]];
        const bool          more    = i + 1 < members.size();
        const bool          early   = more && (layers[members[i + 1]].graph != layer.graph || layer.graph->ahead());
        int64_t             t_start = ggml_time_us();
        if (i == 0) {
            begin(0);
        }
        if (early) {
            begin(i + 1);
        }
        const restkv_graph_scores scores = kind == RESTKV_GRAPH_MOVES ? restkv_graph_scores{} : layer.graph->finish();
        if (more && !early) {
            begin(i + 1);
        }
        event.us_attend += ggml_time_us() - t_start;

        const layer_turn & turn = turns[i % 2];
        kept.resize((size_t) layer.n_head_kv * layer.budget);
        const layer_data & own    = data[members[i]];
        const auto         pos    = [&](uint32_t h) { return turn.pos.data() + (size_t) h * N; };
        const auto         choose = [&](uint32_t h, restkv_scratch & s) {
            choose_task(layer, h, plan, own, pos(h), turn.drifts[h] != 0, scores, s);
        };
        const auto keep = [&](uint32_t h, const restkv_scratch & s) {
            keep_task(layer, h, plan, own, pos(h), s, kept.data() + (size_t) h * layer.budget, out[members[i]]);
        };
        if (method->per_layer) {
            restkv_scratch & s = scratch[0];
            choose_one_set(layer, N - plan.n_guide - layer.n_window, s, [&](uint32_t h) { choose(h, s); });
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                keep(h, s);
            }
        } else {
            restkv_parallel(layer.n_head_kv, std::min((uint32_t) scratch.size(), layer.n_head_kv),
                            [&](uint32_t h, uint32_t thread) {
                                choose(h, scratch[thread]);
                                keep(h, scratch[thread]);
                            });
        }

        t_start = ggml_time_us();
        layer.graph->move(graph_layer(layer), kept.data(), layer.budget);
        event.us_compact += ggml_time_us() - t_start;
    }
    const int64_t t_start = ggml_time_us();
    end.wait();
    event.us_compact += ggml_time_us() - t_start;
}
