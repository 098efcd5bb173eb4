// Method h2o: every query votes once for the cells that it attends to. Votes are counted before the ring overwrites a
// query and before an eviction, so all queries of a text have a say, and the ring stays small. A cell's votes move with
// it. What is cut from the text's end takes no votes back; the tokens of a guide vote like any others.
//
// They are counted where a layer's keys lie (graph/votes.cpp), or on the host when the layer does not run as a graph.

#include "evict.h"
#include "methods/methods.h"
#include "parallel.h"

#include "llama-kv-cache.h"

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

}  // namespace

void restkv_cache::observe(ggml_backend_sched_t sched) {
    if (!method->accumulates || votes_lost[0]) {
        return;
    }
    std::vector<std::pair<llama_pos, int32_t>> pending;
    for (uint32_t slot = 0; slot < ring_pos.size(); ++slot) {
        if (ring_pos[slot] >= std::max(pos_seen, pos_exact)) {
            pending.push_back({ ring_pos[slot], (int32_t) slot });
        }
    }
    if (pending.empty()) {
        return;
    }
    std::sort(pending.begin(), pending.end());
    const llama_pos last = pending.back().first;
    const uint32_t  n    = n_table + (uint32_t) (last - pos_exact) + 1;
    if (n > n_used() || pos_of(n_table) != pos_exact || pos_of(n - 1) != last) {
        pos_seen = last + 1;
        return;  // positions are missing: the eviction will say so
    }

    const int64_t        t_start = ggml_time_us();
    std::vector<int32_t> row_pos, row_slots;
    for (const auto & [pos, slot] : pending) {
        row_pos.push_back(pos);
        row_slots.push_back(slot);
    }
    std::vector<uint32_t> as_graph, on_host;
    for (uint32_t l = 0; l < layers.size(); ++l) {
        if (layers[l].captured) {
            (layers[l].graph ? as_graph : on_host).push_back(l);
        }
    }
    bind_graphs(sched);
    restkv_step("before-vote");
    pos_seen = last + 1;
    try {
        vote_as_graphs(as_graph, n, row_pos, row_slots);
        restkv_step("vote");
        vote_on_host(on_host, n, row_pos, row_slots);
    } catch (...) {
        restkv_reason(votes_lost);  // some have been counted: said by the next eviction
    }
    n_voted += (uint32_t) pending.size();
    us_observe += ggml_time_us() - t_start;
}

// members: layers. row_pos, row_slots: the queries that vote and their rows of the ring.
void restkv_cache::vote_on_host(const std::vector<uint32_t> & members, uint32_t n_cells,
                                const std::vector<int32_t> & row_pos, const std::vector<int32_t> & row_slots) {
    uint32_t group = 1, d_k = 1, n_tasks = 1;
    for (const uint32_t l : members) {
        group   = std::max(group, layers[l].n_head / layers[l].n_head_kv);
        d_k     = std::max(d_k, layers[l].d_k);
        n_tasks = std::max(n_tasks, layers[l].n_head_kv);
    }
    const uint32_t              n_rows    = (uint32_t) row_pos.size();
    const uint32_t              n_threads = members.empty() ? 0 : restkv_threads(params.n_threads, n_tasks);
    std::vector<restkv_scratch> scratch;
    for (uint32_t t = 0; t < n_threads; ++t) {
        scratch.emplace_back(n_cells, group, d_k, 1, n_rows);
    }

    std::vector<uint8_t> copy;
    for (const uint32_t l : members) {
        layer_state & layer = layers[l];
        layer_data    data;
        data.ring.resize(ggml_nelements(layer.ring));
        ggml_backend_tensor_get(layer.ring, data.ring.data(), 0, ggml_nbytes(layer.ring));
        data.sinks = sinks_of(layer);
        data.k     = (uint8_t *) layer.k->data;
        if (!ggml_backend_buffer_is_host(restkv_buffer_of(layer.k))) {
            copy.resize(n_cells * layer.k->nb[1]);
            ggml_backend_tensor_get(layer.k, copy.data(), 0, copy.size());
            data.k = copy.data();
        }
        data.v = data.k;  // nobody reads the values

        restkv_parallel(layer.n_head_kv, std::min(n_threads, layer.n_head_kv), [&](uint32_t h, uint32_t thread) {
            restkv_scratch & s     = scratch[thread];
            const int32_t *  table = layer.table.data() + (size_t) h * params.budget;
            std::copy(table, table + n_table, s.pos.begin());
            for (uint32_t i = n_table; i < n_cells; ++i) {
                s.pos[i] = pos_of(i);
            }
            restkv_view view = head_view(layer, h, data, row_pos, row_slots, s);
            view.n_cells     = n_cells;
            view.pos         = s.pos.data();
            count_votes sink(view.group, layer.sums.data() + (size_t) h * params.capacity);
            s.keys_of = nullptr;
            restkv_attend(view, s, 0, sink);
        });
    }
    const size_t bytes = n_threads * restkv_scratch::bytes(n_cells, group, d_k, 1, n_rows) + copy.size();
    bytes_scratch      = std::max(bytes_scratch, bytes);
}

// Runs where nothing can be returned and nothing may be thrown.
void restkv_cache::observe_before(ggml_backend_sched_t sched, const llama_pos * pos, uint32_t n) noexcept {
    for (uint32_t i = 0; method->accumulates && i < n; ++i) {
        const llama_pos old = ring_pos[(uint32_t) pos[i] % (uint32_t) ring_pos.size()];
        if (old >= pos_seen && old < pos[0]) {
            ggml_backend_sched_synchronize(sched);  // the tokens before may still be under way
            try {
                observe(sched);
            } catch (...) {
                restkv_reason(votes_lost);  // the queries go now
            }
            return;
        }
    }
}

void restkv_cache::forget_from(llama_pos p0) {
    for (llama_pos & pos : ring_pos) {
        pos = pos >= p0 ? -1 : pos;
    }
    pos_seen = std::min(pos_seen, p0);
    if (p0 < pos_exact) {
        return;
    }
    const uint32_t from = n_table + (uint32_t) (p0 - pos_exact);
    for (layer_state & layer : layers) {
        for (uint32_t h = 0; from < params.capacity && h < layer.n_head_kv && !layer.sums.empty(); ++h) {
            float * sums = layer.sums.data() + (size_t) h * params.capacity;
            std::fill(sums + from, sums + params.capacity, 0.0f);
        }
    }
}
