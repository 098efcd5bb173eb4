// The ring of queries: one more set_rows per layer, on the device that holds the cache. No wait, no copy to the host.

#include "restkv-cache.h"

#include "methods/methods.h"

#include "llama-graph.h"
#include "llama-kv-cache.h"

#include <algorithm>

// Rows of the ring for the last tokens of a ubatch, shared by all layers of a graph.
class restkv_ring_input : public llm_graph_input_i {
public:
    restkv_ring_input(restkv_cache & cache, ggml_backend_sched_t sched, ggml_tensor * rows) :
        cache(cache),
        sched(sched),
        rows(rows) {}

    void set_input(const llama_ubatch * ubatch) override {
        const uint32_t       n_ring = (uint32_t) cache.ring_pos.size();
        const uint32_t       n      = (uint32_t) rows->ne[0];
        const llama_pos *    pos    = ubatch->pos + (ubatch->n_tokens - n);
        std::vector<int64_t> data(n);
        cache.observe_before(sched, pos, n);
        for (uint32_t i = 0; i < n; ++i) {
            const uint32_t row = (uint32_t) pos[i] % n_ring;
            // two positions of one row (a batch out of order): the later wins, the other goes to the spare row
            const bool     later =
                std::any_of(pos + i + 1, pos + n, [&](llama_pos p) { return (uint32_t) p % n_ring == row; });
            data[i] = later ? n_ring : row;
            if (!later) {
                cache.ring_pos[row] = pos[i];
            }
        }
        ggml_backend_tensor_set(rows, data.data(), 0, n * sizeof(int64_t));
    }

    bool can_reuse(const llm_graph_params & params) override {
        return rows->ne[0] == std::min<int64_t>(params.ubatch.n_tokens, (int64_t) cache.ring_pos.size());
    }

    restkv_cache &       cache;
    ggml_backend_sched_t sched;
    ggml_tensor *        rows;  // I64 [min(n_tokens, n_ring)]
};

void restkv_cache::capture(const llm_graph_context & graph, restkv_cache * cache, ggml_tensor * q, ggml_tensor * kq_b,
                           ggml_tensor * sinks, float kq_scale, int il) {
    if (!cache || !cache->method->uses_queries) {
        return;
    }
    const auto layer = std::find_if(cache->layers.begin(), cache->layers.end(),
                                    [il](const layer_state & l) { return l.il == (uint32_t) il; });
    if (layer == cache->layers.end()) {
        return;
    }
    layer->kq_scale = kq_scale;
    layer->sinks    = sinks;
    layer->has_bias = kq_b != nullptr;
    layer->captured = true;

    const int64_t n = std::min<int64_t>(q->ne[2], (int64_t) cache->ring_pos.size());

    ggml_tensor * rows = nullptr;
    for (const auto & input : graph.res->inputs) {
        if (const auto * ring = dynamic_cast<restkv_ring_input *>(input.get())) {
            rows = ring->rows;
        }
    }
    if (!rows) {
        rows = ggml_new_tensor_1d(graph.ctx0, GGML_TYPE_I64, n);
        ggml_set_input(rows);
        ggml_set_name(rows, "restkv_ring_rows");
        graph.res->add_input(std::make_unique<restkv_ring_input>(*cache, graph.sched, rows));
    }

    if (!ggml_is_contiguous(q)) {
        q = ggml_cont(graph.ctx0, q);
    }
    q = ggml_view_2d(graph.ctx0, q, q->ne[0] * q->ne[1], n, q->nb[2], (q->ne[2] - n) * q->nb[2]);
    ggml_build_forward_expand(graph.gf, ggml_set_rows(graph.ctx0, layer->ring, q, rows));
}
