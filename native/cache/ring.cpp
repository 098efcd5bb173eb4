#include "cache/ring.h"

#include "api/status.h"
#include "cache/recaller.h"
#include "cache/votes.h"

#include "llama-graph.h"

#include <algorithm>
#include <map>

// Rows of the ring for the last tokens of a ubatch, shared by all layers of a graph.
class restkv_ring_input : public llm_graph_input_i {
public:
    restkv_ring_input(restkv_core & core, ggml_backend_sched_t sched, ggml_tensor * rows) :
        core(core),
        sched(sched),
        rows(rows),
        recalls(is_reading(core)) {}

    void set_input(const llama_ubatch * ubatch) override {
        std::vector<llama_pos> & ring = core.seq.ring_pos;
        const uint32_t           size = (uint32_t) ring.size();
        const uint32_t           n    = (uint32_t) rows->ne[0];
        const llama_pos *        pos  = ubatch->pos + (ubatch->n_tokens - n);
        std::vector<int64_t>     data(n);
        restkv_vote_before(core, sched, pos, n);
        for (uint32_t i = 0; i < n; ++i) {
            const uint32_t row = (uint32_t) pos[i] % size;
            // two positions of one row (a batch out of order): the later wins, the other goes to the spare row
            const bool     later =
                std::any_of(pos + i + 1, pos + n, [&](llama_pos p) { return (uint32_t) p % size == row; });
            data[i] = later ? size : row;
            if (!later) {
                ring[row] = pos[i];
            }
        }
        ggml_backend_tensor_set(rows, data.data(), 0, n * sizeof(int64_t));
    }

    bool can_reuse(const llm_graph_params & params) override {
        return rows->ne[0] == std::min<int64_t>(params.ubatch.n_tokens, (int64_t) core.seq.ring_pos.size()) &&
               recalls == is_reading(core);
    }

    static bool is_reading(const restkv_core & core) { return core.recaller && core.recaller->reading; }

    restkv_core &        core;
    ggml_backend_sched_t sched;
    ggml_tensor *        rows;     // I64 [min(n_tokens, n_ring)]
    const bool           recalls;  // the graph has the operations of a ubatch that recalls
};

void restkv_init_ring(restkv_core & core) {
    std::map<ggml_backend_buffer_type_t, ggml_context_ptr> contexts;
    for (restkv_layer & layer : core.layers) {
        ggml_context_ptr & ctx = contexts[ggml_backend_buffer_get_type(restkv_buffer_of(layer.k))];
        if (!ctx) {
            ctx.reset(ggml_init({ core.layers.size() * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
        }
        layer.ring = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, (int64_t) layer.n_head * layer.d_k,
                                        (int64_t) core.seq.ring_pos.size() + 1);
        ggml_format_name(layer.ring, "restkv_ring_l%u", layer.il);
    }
    for (auto & [buft, ctx] : contexts) {
        ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft));
        if (!buffer) {
            throw restkv_error(RESTKV_NO_MEMORY, "not enough memory for the queries of the window");
        }
        ggml_backend_buffer_clear(buffer.get(), 0);
        core.buffers.emplace_back(std::move(ctx), std::move(buffer));
    }
}

void restkv_capture(const llm_graph_context & graph, restkv_core & core, ggml_tensor * q, ggml_tensor * kq_b,
                    ggml_tensor * sinks, float kq_scale, int il) {
    restkv_layer * layer = core.find_layer(il);
    if (!layer || !layer->ring) {
        return;
    }
    layer->kq_scale = kq_scale;
    layer->sinks    = sinks;
    layer->has_bias = kq_b != nullptr;
    layer->captured = true;

    const int64_t n = std::min<int64_t>(q->ne[2], (int64_t) core.seq.ring_pos.size());

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
        graph.res->add_input(std::make_unique<restkv_ring_input>(core, graph.sched, rows));
    }

    if (!ggml_is_contiguous(q)) {
        q = ggml_cont(graph.ctx0, q);
    }
    q = ggml_view_2d(graph.ctx0, q, q->ne[0] * q->ne[1], n, q->nb[2], (q->ne[2] - n) * q->nb[2]);
    ggml_build_forward_expand(graph.gf, ggml_set_rows(graph.ctx0, layer->ring, q, rows));
}
