// Method h2o: every query votes once for the cells that it attends to. Votes are counted before the ring overwrites a
// query and before an eviction, so all queries of a text have a say, and the ring stays small. A cell's votes move with
// it. What is cut from the text's end takes no votes back; the tokens of a guide vote like any others.

#include "evict.h"
#include "methods/methods.h"
#include "parallel.h"

#include "llama-kv-cache.h"

#include <algorithm>

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
    if (!method->accumulates || votes_lost) {
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
    pos_seen             = last + 1;
    if (n > n_used() || pos_of(n_table) != pos_exact || pos_of(n - 1) != last) {
        return;  // positions are missing: the eviction will say so
    }

    const int64_t t_start = ggml_time_us();
    try {
        std::vector<int32_t> row_pos, row_slots;
        for (const auto & [pos, slot] : pending) {
            row_pos.push_back(pos);
            row_slots.push_back(slot);
        }
        uint32_t group = 1, d_k = 1;
        for (const layer_state & layer : layers) {
            group = std::max(group, layer.n_head / layer.n_head_kv);
            d_k   = std::max(d_k, layer.d_k);
        }
        uint32_t n_tasks = 1;
        for (const layer_state & layer : layers) {
            n_tasks = std::max(n_tasks, layer.n_head_kv);
        }
        const uint32_t              n_threads = restkv_threads(params.n_threads, n_tasks);
        const uint32_t              n_rows    = (uint32_t) row_pos.size();
        std::vector<restkv_scratch> scratch;
        for (uint32_t t = 0; t < n_threads; ++t) {
            scratch.emplace_back(n, group, d_k, 1, n_rows);
        }

        bind_graphs(sched);
        std::vector<uint8_t>  copy;
        std::vector<uint32_t> as_graph;
        for (layer_state & layer : layers) {
            if (!layer.captured) {
                continue;
            }
            if (layer.graph) {
                as_graph.push_back((uint32_t) (&layer - layers.data()));
                continue;
            }
            layer_data data;
            data.ring.resize(ggml_nelements(layer.ring));
            ggml_backend_tensor_get(layer.ring, data.ring.data(), 0, ggml_nbytes(layer.ring));
            if (layer.sinks) {
                data.sinks.resize(layer.n_head);
                ggml_backend_tensor_get(layer.sinks, data.sinks.data(), 0, layer.n_head * sizeof(float));
            }
            const ggml_backend_buffer_t buffer = restkv_buffer_of(layer.k);
            data.k                             = (uint8_t *) layer.k->data;
            if (!ggml_backend_buffer_is_host(buffer)) {
                copy.resize(n * layer.k->nb[1]);
                ggml_backend_tensor_get(layer.k, copy.data(), 0, copy.size());
                data.k = copy.data();
            }
            data.v = data.k;  // nobody reads the values

            restkv_parallel(layer.n_head_kv, std::min(n_threads, layer.n_head_kv), [&](uint32_t h, uint32_t thread) {
                restkv_scratch & s     = scratch[thread];
                const int32_t *  table = layer.table.data() + (size_t) h * params.budget;
                std::copy(table, table + n_table, s.pos.begin());
                for (uint32_t i = n_table; i < n; ++i) {
                    s.pos[i] = pos_of(i);
                }
                restkv_view view = head_view(layer, h, data, row_pos, row_slots, s);
                view.n_cells     = n;
                view.pos         = s.pos.data();
                count_votes sink(view.group, layer.sums.data() + (size_t) h * params.capacity);
                s.keys_of = nullptr;
                restkv_attend(view, s, 0, sink);
            });
        }
        vote_as_graphs(as_graph, n, row_pos, row_slots);
        bytes_scratch =
            std::max(bytes_scratch, n_threads * restkv_scratch::bytes(n, group, d_k, 1, n_rows) + copy.size());
    } catch (const std::exception &) {
        votes_lost = true;  // said by the next eviction: this may run where nothing can be returned
    }
    n_voted += (uint32_t) pending.size();
    us_observe += ggml_time_us() - t_start;
}

void restkv_cache::observe_before(ggml_backend_sched_t sched, const llama_pos * pos, uint32_t n) {
    for (uint32_t i = 0; method->accumulates && i < n; ++i) {
        const llama_pos old = ring_pos[(uint32_t) pos[i] % (uint32_t) ring_pos.size()];
        if (old >= pos_seen && old < pos[0]) {
            ggml_backend_sched_synchronize(sched);  // the tokens before may still be under way
            observe(sched);
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
