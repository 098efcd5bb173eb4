// Layers and heads with budgets of their own: which cells they have, hold and see. See the head of restkv-cache.h.

#include "restkv-cache.h"

#include "llama-graph.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <stdexcept>

// ---- construction ------------------------------------------------------------------------------

// The condition of restkv_model_probe(), whose count a pyramid's budgets follow.
static bool is_evicting(const llama_hparams & hparams, uint32_t il) {
    return !hparams.is_recr(il) && hparams.has_kv(il) && hparams.n_head_kv(il) > 0 && !hparams.is_swa(il);
}

void restkv_cache::check_shares(const llama_kv_cache & kv) const {
    const auto fail = [](const std::string & why) {
        restkv_fail(RESTKV_UNSUPPORTED, "this cache cannot evict: " + why);
        throw std::runtime_error(restkv_last_error());
    };
    size_t n = 0;
    for (uint32_t il = 0; il < kv.hparams.n_layer(); ++il) {
        n += is_evicting(kv.hparams, il) ? 1 : 0;
        if (armed.shares.kind == RESTKV_ALLOCATION_ADA && kv.model.layers[il].attn_sinks) {
            fail("the attention sinks of this model do not go with budgets per head: use another allocation");
        }
    }
    if (armed.shares.kind == RESTKV_ALLOCATION_PYRAMID && n != armed.shares.budgets.size()) {
        fail("a pyramid of " + std::to_string(armed.shares.budgets.size()) + " budgets for " + std::to_string(n) +
             " layers that evict");
    }
}

uint32_t restkv_cache::budget_of(uint32_t il) const {
    if (armed.shares.kind != RESTKV_ALLOCATION_PYRAMID) {
        return n_row_max;
    }
    size_t n = 0;
    for (uint32_t i = 0; i < il; ++i) {
        n += is_evicting(kv.hparams, i) ? 1 : 0;
    }
    return n < armed.shares.budgets.size() ? armed.shares.budgets[n] : n_row_max;
}

uint32_t restkv_cache::n_rows(int il) const {
    return budget_of((uint32_t) il) + (params.capacity - params.budget);
}

void restkv_cache::init_shares() {
    if (!is_shared()) {
        return;
    }
    for (layer_state & layer : layers) {
        layer.first = n_row_max - layer.budget;
        if (armed.shares.n_past >= 0) {
            layer.n_window = layer.budget - (uint32_t) armed.shares.n_past;
        }
        if (armed.shares.kind != RESTKV_ALLOCATION_ADA) {
            continue;
        }
        ggml_init_params init = { ggml_tensor_overhead(), nullptr, /*no_alloc =*/true };
        ggml_context *   ctx  = ggml_init(init);
        buffers.emplace_back(ctx, nullptr);
        layer.mask =
            ggml_new_tensor_2d(ctx, GGML_TYPE_F16, n_row_max + (params.capacity - params.budget), layer.n_head_kv);
        ggml_format_name(layer.mask, "restkv_mask_l%u", layer.il);
        ggml_backend_buffer_t rows = layer.k->buffer ? layer.k->buffer : layer.k->view_src->buffer;
        buffers.back().second.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_buffer_get_type(rows)));
        if (!buffers.back().second) {
            throw std::runtime_error("not enough memory for the masks of the heads");
        }
        mask.resize(std::max(mask.size(), (size_t) ggml_nelements(layer.mask)));
    }
    show_cells();
}

// ---- cells -------------------------------------------------------------------------------------

uint32_t restkv_cache::n_end() const {
    return std::max(kv.v_cells[0].used_max_p1(), start);
}

uint32_t restkv_cache::tail_begin() const {
    return n_table > 0 ? n_table : start;
}

uint32_t restkv_cache::held(const layer_state & layer, uint32_t head_kv) const {
    return n_table > 0 ? layer.held[head_kv] : 0;
}

void restkv_cache::show_cells() {
    if (!is_shared()) {
        return;
    }
    epoch++;
    for (layer_state & layer : layers) {
        layer.hidden = n_table > 0 ? n_row_max - *std::max_element(layer.held.begin(), layer.held.end()) : start;
    }
    masks_due = armed.shares.kind == RESTKV_ALLOCATION_ADA;
}

void restkv_cache::write_masks() {
    for (const layer_state & layer : layers) {
        if (!masks_due || !layer.mask) {
            continue;
        }
        const size_t n = layer.mask->ne[0];
        std::fill_n(mask.begin(), n * layer.n_head_kv, ggml_fp32_to_fp16(0.0f));
        for (uint32_t h = 0; h < layer.n_head_kv && n_table > 0; ++h) {
            std::fill_n(mask.begin() + h * n, n_row_max - layer.held[h], ggml_fp32_to_fp16(-INFINITY));
        }
        ggml_backend_tensor_set(layer.mask, mask.data(), 0, ggml_nbytes(layer.mask));
    }
    masks_due = false;
}

void restkv_cache::count_cells(restkv_stats & s) const {
    uint64_t sum = 0, n_heads = 0;
    for (const layer_state & layer : layers) {
        n_heads += layer.n_head_kv;
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            sum += held(layer, h);
        }
        s.bytes_table += layer.mask ? ggml_nbytes(layer.mask) : 0;
    }
    s.n_cells = (uint32_t) (sum / n_heads) + n_end() - tail_begin();
    s.n_free  = kv.get_size() - n_end();
}

// ---- graph -------------------------------------------------------------------------------------

// What the layers of a graph share: rows of a ubatch by the layer's first cell, masks by its hidden cells.
class restkv_shared_input : public llm_graph_input_i {
public:
    restkv_shared_input(restkv_cache & cache, ggml_backend_sched_t sched) :
        cache(cache),
        sched(sched),
        epoch(cache.epoch) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (cache.masks_due) {
            ggml_backend_sched_synchronize(sched);  // the graph before this one may still read them
            cache.write_masks();
        }
        if (rows.empty()) {
            return;
        }
        // the attention's own input comes before this one and is set
        std::vector<int64_t> data(ubatch->n_tokens);
        ggml_backend_tensor_get(idxs, data.data(), 0, data.size() * sizeof(int64_t));
        int64_t off = 0;
        for (const auto & [first, tensor] : rows) {
            for (int64_t & row : data) {
                row -= first - off;
            }
            off = first;
            ggml_backend_tensor_set(tensor, data.data(), 0, data.size() * sizeof(int64_t));
        }
    }

    bool can_reuse(const llm_graph_params & params) override {
        const bool fits = rows.empty() || rows.begin()->second->ne[0] == (int64_t) params.ubatch.n_tokens;
        return fits && epoch == cache.epoch;
    }

    static restkv_shared_input & of(const llm_graph_context & graph, restkv_cache & cache) {
        for (const auto & input : graph.res->inputs) {
            if (auto * found = dynamic_cast<restkv_shared_input *>(input.get())) {
                return *found;
            }
        }
        auto   made  = std::make_unique<restkv_shared_input>(cache, graph.sched);
        auto & input = *made;
        graph.res->add_input(std::move(made));
        return input;
    }

    restkv_cache &       cache;
    ggml_backend_sched_t sched;
    const uint64_t       epoch;
    ggml_tensor *        idxs = nullptr;

    std::map<int64_t, ggml_tensor *> rows;   // by first cell: I64 [n_tokens]
    std::map<int64_t, ggml_tensor *> masks;  // by hidden cells: F16 [n_kv - hidden, n_tokens]
};

uint32_t restkv_cache::seen_rows(int il, uint32_t & n_kv) const {
    const auto layer =
        std::find_if(layers.begin(), layers.end(), [il](const layer_state & l) { return l.il == (uint32_t) il; });
    if (!is_shared() || layer == layers.end()) {
        return 0;
    }
    // without a text memory is reserved: for the most cells that the layer can ever see
    const uint32_t hidden = n_used() == 0 ? layer->first : layer->hidden;
    n_kv -= hidden;
    return hidden - layer->first;
}

ggml_tensor * restkv_cache::rows_of(const llm_graph_context & graph, restkv_cache * cache, ggml_tensor * idxs, int il) {
    if (!cache || !cache->is_shared()) {
        return idxs;
    }
    restkv_shared_input & input = restkv_shared_input::of(graph, *cache);
    const uint32_t        first = cache->n_row_max - cache->budget_of((uint32_t) il);
    if (first == 0) {
        return idxs;
    }
    ggml_tensor *& rows = input.rows[first];
    if (!rows) {
        rows = ggml_new_tensor_1d(graph.ctx0, GGML_TYPE_I64, idxs->ne[0]);
        ggml_set_input(rows);
        ggml_format_name(rows, "restkv_rows_%u", first);
        input.idxs = idxs;
    }
    return rows;
}

ggml_tensor * restkv_cache::attend(const llm_graph_context & graph, restkv_cache * cache, ggml_tensor * q,
                                   ggml_tensor * k, ggml_tensor * v, ggml_tensor * kq_b, ggml_tensor * kq_mask,
                                   ggml_tensor * sinks, ggml_tensor * v_mla, float kq_scale, int il) {
    if (!cache || !cache->is_shared()) {
        return graph.build_attn_mha(q, k, v, kq_b, kq_mask, sinks, v_mla, 0, kq_scale, il);
    }
    ggml_context * ctx    = graph.ctx0;
    const int64_t  n_kv   = k->ne[2];
    const int64_t  hidden = kq_mask->ne[0] - n_kv;  // as seen_rows() has it
    ggml_tensor *& mask   = restkv_shared_input::of(graph, *cache).masks[hidden];
    if (!mask) {
        mask =
            hidden == 0 ?
                kq_mask :
                ggml_cont(ctx, ggml_view_4d(ctx, kq_mask, n_kv, kq_mask->ne[1], kq_mask->ne[2], kq_mask->ne[3],
                                            kq_mask->nb[1], kq_mask->nb[2], kq_mask->nb[3], hidden * kq_mask->nb[0]));
    }
    const auto layer = std::find_if(cache->layers.begin(), cache->layers.end(),
                                    [il](const layer_state & l) { return l.il == (uint32_t) il; });
    if (layer == cache->layers.end() || !layer->mask) {
        return graph.build_attn_mha(q, k, v, kq_b, mask, sinks, v_mla, 0, kq_scale, il);
    }

    // Each KV head sees cells of its own. With the KV heads in the last dimension, where llama.cpp has streams, a mask per
    // KV head serves its whole group.
    const int64_t n_head = layer->n_head_kv;
    const int64_t group  = layer->n_head / n_head;
    const int64_t n_tok  = q->ne[2];

    ggml_tensor * own = ggml_view_4d(ctx, layer->mask, n_kv, 1, 1, n_head, layer->mask->nb[1], layer->mask->nb[1],
                                     layer->mask->nb[1], hidden * layer->mask->nb[0]);
    own               = ggml_add(ctx, ggml_repeat_4d(ctx, mask, n_kv, mask->ne[1], 1, n_head), own);

    q = ggml_view_4d(ctx, q, q->ne[0], group, n_head, n_tok, q->nb[1], q->nb[1] * group, q->nb[2], 0);
    q = ggml_cont(ctx, ggml_permute(ctx, q, 0, 1, 3, 2));
    q = ggml_reshape_3d(ctx, q, q->ne[0], group, n_tok * n_head);
    k = ggml_view_4d(ctx, k, k->ne[0], 1, n_kv, n_head, k->nb[1], k->nb[2], k->nb[1], 0);
    v = ggml_view_4d(ctx, v, v->ne[0], 1, n_kv, n_head, v->nb[1], v->nb[2], v->nb[1], 0);

    ggml_tensor * cur = graph.build_attn_mha(q, k, v, kq_b, own, sinks, v_mla, 0, kq_scale, il);
    cur               = ggml_reshape_3d(ctx, cur, cur->ne[0], n_tok, n_head);
    cur               = ggml_cont(ctx, ggml_permute(ctx, cur, 0, 2, 1, 3));
    return ggml_reshape_2d(ctx, cur, cur->ne[0] * n_head, n_tok);
}
