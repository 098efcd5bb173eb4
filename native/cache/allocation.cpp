// Layers and heads with budgets of their own: which cells they have, hold and see. See the head of sequence.h.

#include "api/status.h"
#include "cache/hooks.h"
#include "cache/recaller.h"
#include "cache/ring.h"

#include "llama-graph.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <map>

// ---- construction ------------------------------------------------------------------------------

// The condition of restkv_model_probe(), whose count a pyramid's budgets follow.
static bool is_evicting(const llama_hparams & hparams, uint32_t il) {
    return !hparams.is_recr(il) && hparams.has_kv(il) && hparams.n_head_kv(il) > 0 && !hparams.is_swa(il);
}

static uint32_t largest(const restkv_settings & armed) {
    switch (armed.shares.kind) {
        case RESTKV_ALLOCATION_PYRAMID:
            return *std::max_element(armed.shares.budgets.begin(), armed.shares.budgets.end());
        case RESTKV_ALLOCATION_ADA:
            return armed.shares.head_max;
        default:
            return armed.params.budget;
    }
}

restkv_core::restkv_core(restkv_settings armed, const llama_hparams & hparams) :
    settings(std::move(armed)),
    params(settings.params),
    method(*restkv_find_method(params.method)),
    n_row_max(largest(settings)),
    budgets(hparams.n_layer_all, n_row_max) {
    const std::vector<uint32_t> & shares = settings.shares.budgets;
    uint32_t                      least  = params.budget;
    if (settings.shares.kind == RESTKV_ALLOCATION_PYRAMID) {
        least    = *std::min_element(shares.begin(), shares.end());
        size_t n = 0;
        for (uint32_t il = 0; il < hparams.n_layer() && n < shares.size(); ++il) {
            if (is_evicting(hparams, il)) {
                budgets[il] = shares[n++];
            }
        }
    }
    seq.start    = n_row_max - least;
    seq.capacity = params.capacity;
}

restkv_core::~restkv_core() = default;

void restkv_core::check_shares(const llama_model & model) const {
    size_t n = 0;
    for (uint32_t il = 0; il < model.hparams.n_layer(); ++il) {
        n += is_evicting(model.hparams, il) ? 1 : 0;
        if (settings.shares.kind == RESTKV_ALLOCATION_ADA && model.layers[il].attn_sinks) {
            throw restkv_error(RESTKV_INVALID, "this cache cannot evict: the attention sinks of this model do not go "
                                               "with budgets per head: use another allocation");
        }
    }
    if (settings.archive.params.place != RESTKV_PLACE_NONE && (is_shared() || method.accumulates)) {
        throw restkv_error(RESTKV_INVALID, "this cache cannot have an archive: it needs one budget for all heads and "
                                           "layers, and a method whose queries do not vote");
    }
    if (settings.shares.kind == RESTKV_ALLOCATION_PYRAMID && n != settings.shares.budgets.size()) {
        throw restkv_error(RESTKV_INVALID, "this cache cannot evict: a pyramid of " +
                                               std::to_string(settings.shares.budgets.size()) + " budgets for " +
                                               std::to_string(n) + " layers that evict");
    }
}

void restkv_core::init_shares() {
    if (!is_shared()) {
        return;
    }
    for (restkv_layer & layer : layers) {
        layer.first = n_row_max - layer.budget;
        if (settings.shares.n_past >= 0) {
            layer.n_window = layer.budget - (uint32_t) settings.shares.n_past;
        }
        if (settings.shares.kind != RESTKV_ALLOCATION_ADA) {
            continue;
        }
        ggml_context_ptr ctx(ggml_init({ ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
        layer.mask = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, n_cells(), layer.n_head_kv);
        ggml_format_name(layer.mask, "restkv_mask_l%u", layer.il);
        ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(
            ctx.get(), ggml_backend_buffer_get_type(restkv_buffer_of(layer.k))));
        if (!buffer) {
            throw restkv_error(RESTKV_NO_MEMORY, "not enough memory for the masks of the heads");
        }
        ggml_backend_buffer_clear(buffer.get(), 0);
        mask.resize(std::max(mask.size(), (size_t) ggml_nelements(layer.mask)));
        buffers.emplace_back(std::move(ctx), std::move(buffer));
    }
    show_cells();
}

// ---- cells -------------------------------------------------------------------------------------

uint32_t restkv_core::n_end() const {
    return std::max(cells->used_max_p1(), seq.start);
}

restkv_layer * restkv_core::find_layer(int il) {
    const auto found =
        std::find_if(layers.begin(), layers.end(), [il](const restkv_layer & l) { return l.il == (uint32_t) il; });
    return found == layers.end() ? nullptr : &*found;
}

void restkv_core::clear() {
    seq.clear();
    if (recaller) {
        recaller->forget_all();
    }
    show_cells();
}

void restkv_core::show_cells() {
    if (!is_shared()) {
        return;
    }
    epoch++;
    for (restkv_held & layer : seq.layers) {
        layer.hidden =
            seq.n_table > 0 ? n_row_max - *std::max_element(layer.held.begin(), layer.held.end()) : seq.start;
    }
    masks_due = settings.shares.kind == RESTKV_ALLOCATION_ADA;
}

void restkv_core::write_masks() {
    for (size_t l = 0; l < layers.size(); ++l) {
        const restkv_layer & layer = layers[l];
        if (!masks_due || !layer.mask) {
            continue;
        }
        const size_t n = layer.mask->ne[0];
        std::fill_n(mask.begin(), n * layer.n_head_kv, ggml_fp32_to_fp16(0.0f));
        for (uint32_t h = 0; h < layer.n_head_kv && seq.n_table > 0; ++h) {
            std::fill_n(mask.begin() + h * n, n_row_max - seq.layers[l].held[h], ggml_fp32_to_fp16(-INFINITY));
        }
        ggml_backend_tensor_set(layer.mask, mask.data(), 0, ggml_nbytes(layer.mask));
    }
    masks_due = false;
}

uint32_t restkv_core::seen_rows(int il, uint32_t & n_kv) const {
    for (size_t l = 0; is_shared() && l < layers.size(); ++l) {
        if (layers[l].il == (uint32_t) il) {
            // without a text memory is reserved: for the most cells that the layer can ever see
            const uint32_t hidden = n_used() == 0 ? layers[l].first : seq.layers[l].hidden;
            n_kv -= hidden;
            return hidden - layers[l].first;
        }
    }
    return 0;
}

// ---- graph -------------------------------------------------------------------------------------

// What the layers of a graph share: rows of a ubatch by the layer's first cell, masks by its hidden cells.
class restkv_shared_input : public llm_graph_input_i {
public:
    restkv_shared_input(restkv_core & core, ggml_backend_sched_t sched) : core(core), sched(sched), epoch(core.epoch) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (core.masks_due) {
            ggml_backend_sched_synchronize(sched);  // the graph before this one may still read them
            core.write_masks();
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
        return fits && epoch == core.epoch;
    }

    static restkv_shared_input & of(const llm_graph_context & graph, restkv_core & core) {
        for (const auto & input : graph.res->inputs) {
            if (auto * found = dynamic_cast<restkv_shared_input *>(input.get())) {
                return *found;
            }
        }
        auto   made  = std::make_unique<restkv_shared_input>(core, graph.sched);
        auto & input = *made;
        graph.res->add_input(std::move(made));
        return input;
    }

    restkv_core &        core;
    ggml_backend_sched_t sched;
    const uint64_t       epoch;
    ggml_tensor *        idxs = nullptr;

    std::map<int64_t, ggml_tensor *> rows;   // by first cell: I64 [n_tokens]
    std::map<int64_t, ggml_tensor *> masks;  // by hidden cells: F16 [n_kv - hidden, n_tokens]
};

ggml_tensor * restkv_cache::rows_of(const llm_graph_context & graph, const llama_kv_cache_context * context,
                                    ggml_tensor * idxs, int il) {
    const restkv_cache * cache = of(context);
    if (!cache || !cache->core->is_shared()) {
        return idxs;
    }
    restkv_core &         core  = *cache->core;
    restkv_shared_input & input = restkv_shared_input::of(graph, core);
    const uint32_t        first = core.n_row_max - core.budgets[il];
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

ggml_tensor * restkv_cache::attend(const llm_graph_context & graph, const llama_kv_cache_context * context,
                                   ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * kq_b,
                                   ggml_tensor * kq_mask, ggml_tensor * sinks, ggml_tensor * v_mla, float kq_scale,
                                   int il) {
    const restkv_cache * cache = graph.cparams.training ? nullptr : of(context);
    if (cache) {
        restkv_capture(graph, *cache->core, q, kq_b, sinks, kq_scale, il);
        if (cache->core->recaller) {
            cache->core->recaller->add_to(graph, q, il);
        }
    }
    if (!cache || !cache->core->is_shared()) {
        return graph.build_attn_mha(q, k, v, kq_b, kq_mask, sinks, v_mla, 0, kq_scale, il);
    }
    restkv_core &  core   = *cache->core;
    ggml_context * ctx    = graph.ctx0;
    const int64_t  n_kv   = k->ne[2];
    const int64_t  hidden = kq_mask->ne[0] - n_kv;  // as seen_rows() has it
    ggml_tensor *& mask   = restkv_shared_input::of(graph, core).masks[hidden];
    if (!mask) {
        mask =
            hidden == 0 ?
                kq_mask :
                ggml_cont(ctx, ggml_view_4d(ctx, kq_mask, n_kv, kq_mask->ne[1], kq_mask->ne[2], kq_mask->ne[3],
                                            kq_mask->nb[1], kq_mask->nb[2], kq_mask->nb[3], hidden * kq_mask->nb[0]));
    }
    const restkv_layer * layer = core.find_layer(il);
    if (!layer || !layer->mask) {
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
