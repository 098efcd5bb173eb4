#include "cache/votes.h"

#include "cache/failure.h"
#include "cache/fault.h"
#include "cache/view.h"
#include "stages/parallel.h"

#include <algorithm>
#include <stdexcept>

namespace {

class count_votes : public restkv_row_sink {
public:
    count_votes(uint32_t group, float * sums) : weight(1.0f / group), sums(sums) {}

    void row(const restkv_row & r) override { restkv_cpu_kernels()->axpy(weight, r.a, r.n_visible, sums); }

private:
    const float weight;  // the KV head's mean over its query heads
    float *     sums;
};

// members: layers. window: the queries that vote.
void vote_on_host(restkv_core & core, const std::vector<uint32_t> & members, uint32_t n_cells,
                  const restkv_sequence::window & window) {
    const restkv_params & params = core.params;
    restkv_sequence &     seq    = core.seq;
    uint32_t              group = 1, d_k = 1, n_tasks = 1;
    for (const uint32_t l : members) {
        group   = std::max(group, core.layers[l].group());
        d_k     = std::max(d_k, core.layers[l].d_k);
        n_tasks = std::max(n_tasks, core.layers[l].n_head_kv);
    }
    const uint32_t              n_rows    = (uint32_t) window.pos.size();
    const uint32_t              n_threads = members.empty() ? 0 : restkv_threads(params.n_threads, n_tasks);
    std::vector<restkv_scratch> scratch;
    for (uint32_t t = 0; t < n_threads; ++t) {
        scratch.emplace_back(n_cells, group, d_k, 1, n_rows);
    }

    std::vector<uint8_t> copy;
    for (const uint32_t l : members) {
        const restkv_layer & layer = core.layers[l];
        restkv_host_rows     rows;
        rows.read_ring(layer);
        rows.sinks = layer.read_sinks();
        rows.k     = (uint8_t *) layer.k->data;
        if (!ggml_backend_buffer_is_host(restkv_buffer_of(layer.k))) {
            copy.resize(n_cells * layer.k->nb[1]);
            ggml_backend_tensor_get(layer.k, copy.data(), 0, copy.size());
            rows.k = copy.data();
        }
        rows.v = rows.k;  // nobody reads the values

        restkv_parallel(layer.n_head_kv, std::min(n_threads, layer.n_head_kv), [&](uint32_t h, uint32_t thread) {
            restkv_scratch & s     = scratch[thread];
            const int32_t *  table = seq.layers[l].table.data() + (size_t) h * params.budget;
            std::copy(table, table + seq.n_table, s.pos.begin());
            for (uint32_t i = seq.n_table; i < n_cells; ++i) {
                s.pos[i] = core.pos_of(i);
            }
            restkv_view view = restkv_view_of(core, l, h, rows, window, s);
            view.n_cells     = n_cells;
            view.pos         = s.pos.data();
            count_votes sink(view.group, seq.layers[l].sums.data() + (size_t) h * params.capacity);
            s.keys_of = nullptr;
            restkv_attend(view, s, 0, sink);
        });
    }
    const size_t bytes = n_threads * restkv_scratch::bytes(n_cells, group, d_k, 1, n_rows) + copy.size();
    core.bytes_scratch = std::max(core.bytes_scratch, bytes);
}

// On the device that holds the keys: one sum of attention per query head and cell comes back.
void vote_as_graphs(restkv_core & core, const std::vector<uint32_t> & members, uint32_t n_cells,
                    const restkv_sequence::window & window) {
    restkv_sequence &    seq = core.seq;
    std::vector<int32_t> n_visible;
    for (const int32_t pos : window.pos) {
        n_visible.push_back((int32_t) seq.n_table + pos - seq.pos_exact + 1);
    }
    if (n_cells - (uint32_t) n_visible[0] >= seq.ring_pos.size()) {
        throw std::runtime_error("queries that vote lie further apart than the ring is long");
    }
    restkv_graph_cells cells;
    cells.n_cells = cells.n_past = n_cells;
    cells.n_rows                 = (uint32_t) window.slots.size();
    cells.row_slots              = window.slots.data();
    cells.n_visible              = n_visible.data();

    for (const uint32_t l : members) {
        const restkv_layer &     layer   = core.layers[l];
        const std::vector<float> sinks   = layer.read_sinks();
        restkv_graph_layer       shape   = layer.graph_layer();
        shape.sinks                      = sinks.empty() ? nullptr : sinks.data();
        const restkv_graph_scores scores = layer.graph->score(shape, cells);
        const uint32_t            group  = layer.group();
        for (uint32_t h = 0; h < layer.n_head; ++h) {
            float *       sums = seq.layers[l].sums.data() + (size_t) (h / group) * core.params.capacity;
            const float * abar = scores.abar + (size_t) h * scores.n_cols;
            for (uint32_t j = 0; j < n_cells; ++j) {
                sums[j] += abar[j] / group;  // the KV head's mean over its query heads
            }
        }
    }
}

}  // namespace

void restkv_vote(restkv_core & core, ggml_backend_sched_t sched) {
    restkv_sequence & seq = core.seq;
    if (!core.method.accumulates || seq.votes_lost[0]) {
        return;
    }
    std::vector<std::pair<llama_pos, int32_t>> pending;
    for (uint32_t slot = 0; slot < seq.ring_pos.size(); ++slot) {
        if (seq.ring_pos[slot] >= std::max(seq.pos_seen, seq.pos_exact)) {
            pending.push_back({ seq.ring_pos[slot], (int32_t) slot });
        }
    }
    if (pending.empty()) {
        return;
    }
    std::sort(pending.begin(), pending.end());
    const llama_pos last = pending.back().first;
    const uint32_t  n    = seq.n_table + (uint32_t) (last - seq.pos_exact) + 1;
    if (n > core.n_used() || core.pos_of(seq.n_table) != seq.pos_exact || core.pos_of(n - 1) != last) {
        seq.pos_seen = last + 1;
        return;  // positions are missing: the eviction will say so
    }

    const int64_t           t_start = ggml_time_us();
    restkv_sequence::window window;
    for (const auto & [pos, slot] : pending) {
        window.pos.push_back(pos);
        window.slots.push_back(slot);
    }
    std::vector<uint32_t> as_graph, on_host;
    for (uint32_t l = 0; l < core.layers.size(); ++l) {
        if (core.layers[l].captured) {
            (core.layers[l].graph ? as_graph : on_host).push_back(l);
        }
    }
    core.devices.bind(sched);
    restkv_step("before-vote");
    seq.pos_seen = last + 1;
    try {
        vote_as_graphs(core, as_graph, n, window);
        restkv_step("vote");
        vote_on_host(core, on_host, n, window);
    } catch (...) {
        restkv_reason(seq.votes_lost);  // some have been counted: said by the next eviction
    }
    seq.n_voted += (uint32_t) pending.size();
    seq.us_votes += ggml_time_us() - t_start;
}

void restkv_vote_before(restkv_core & core, ggml_backend_sched_t sched, const llama_pos * pos, uint32_t n) noexcept {
    restkv_sequence & seq = core.seq;
    for (uint32_t i = 0; core.method.accumulates && i < n; ++i) {
        const llama_pos old = seq.ring_pos[(uint32_t) pos[i] % (uint32_t) seq.ring_pos.size()];
        if (old >= seq.pos_seen && old < pos[0]) {
            ggml_backend_sched_synchronize(sched);  // the tokens before may still be under way
            try {
                restkv_vote(core, sched);
            } catch (...) {
                restkv_reason(seq.votes_lost);  // the queries go now
            }
            return;
        }
    }
}
