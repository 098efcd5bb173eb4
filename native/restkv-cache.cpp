#include "restkv-cache.h"

#include "methods/methods.h"
#include "parallel.h"

#include "llama-impl.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <map>
#include <stdexcept>

thread_local std::unique_ptr<restkv_armed> restkv_pending;
thread_local const restkv_cache *          restkv_claimed = nullptr;

std::string restkv_cache::refusal(const llama_model & model) {
    const llama_hparams & hparams = model.hparams;
    if (hparams.is_mla()) {
        return "models with multi-head latent attention keep one compressed row per cell, which cannot be evicted yet";
    }
    if (hparams.use_alibi) {
        return "ALiBi adds a bias per distance that the scores do not know";
    }
    if (hparams.n_pos_per_embd() > 1) {
        return "models with several positions per token (M-RoPE) are not supported";
    }
    if (model.arch == LLM_ARCH_GROK || model.arch == LLM_ARCH_T5) {  // build_attn_mha asks for their names too
        return "the attention of this family has a form of its own that the scores do not know";
    }
    if (hparams.n_layer_kv_from_start >= 0) {
        return "layers of this model share one cache";
    }
    for (const llama_device & device : model.devices) {
        if (ggml_backend_dev_type(device.dev) == GGML_BACKEND_DEVICE_TYPE_META) {
            return "tensors are split or mirrored over several devices (split_mode 3, \"tensor\"), and an eviction "
                   "needs "
                   "the rows of a layer in one place: use split_mode 1 (\"layer\")";
        }
    }
    return "";
}

void restkv_cache::claim(llama_kv_cache & kv, uint32_t & kv_size) {
    // the sliding-window part of a model keeps its own small cache
    if (!restkv_pending || kv.swa_type != LLAMA_SWA_TYPE_NONE) {
        return;
    }
    const std::unique_ptr<restkv_armed> armed = std::move(restkv_pending);

    std::string reason = refusal(kv.model);
    if (reason.empty() && kv.v_trans) {
        reason = "flash attention is off, which stores V transposed: turn it on";
    }
    if (reason.empty() && (kv.n_seq_max > 1 || kv.other)) {
        reason = "a cache that evicts holds one sequence: set n_seq_max to 1";
    }
    if (!reason.empty()) {
        restkv_fail(RESTKV_UNSUPPORTED, "this cache cannot evict: " + reason);
        throw std::runtime_error(restkv_last_error());
    }
    kv.restkv.reset(new restkv_cache(kv, *armed));
    kv.restkv->check_shares(kv);
    restkv_claimed = kv.restkv.get();
    kv_size        = kv.restkv->n_row_max + (armed->params.capacity - armed->params.budget);
}

restkv_cache::restkv_cache(llama_kv_cache & kv, restkv_armed armed) :
    kv(kv),
    armed(std::move(armed)),
    params(this->armed.params),
    method(restkv_find_method(params.method)),
    n_row_max(params.budget) {
    const restkv_shares & shares = this->armed.shares;
    if (shares.kind == RESTKV_ALLOCATION_PYRAMID) {
        n_row_max = *std::max_element(shares.budgets.begin(), shares.budgets.end());
        start     = n_row_max - *std::min_element(shares.budgets.begin(), shares.budgets.end());
    } else if (shares.kind == RESTKV_ALLOCATION_ADA) {
        n_row_max = shares.head_max;
        start     = n_row_max - params.budget;
    }
}

restkv_cache::~restkv_cache() {
    restkv_claimed = restkv_claimed == this ? nullptr : restkv_claimed;
}

void restkv_cache::init() {
    try {
        for (const auto & layer : kv.layers) {
            const llama_hparams & hparams = kv.hparams;
            if (hparams.n_head_kv(layer.il) == 0) {
                continue;  // a layer without attention
            }
            layers.push_back({ layer.il,
                               hparams.n_head(layer.il),
                               hparams.n_head_kv(layer.il),
                               hparams.n_embd_head_k(layer.il),
                               hparams.n_embd_head_v(layer.il),
                               layer.k_stream[0],
                               layer.v_stream[0],
                               nullptr,
                               0.0f,
                               nullptr,
                               false,
                               false,
                               RESTKV_STAGES_FUSED,
                               nullptr,
                               nullptr,
                               {},
                               std::vector<int32_t>((size_t) hparams.n_head_kv(layer.il) * budget_of(layer.il)),
                               {},
                               budget_of(layer.il),
                               params.window,
                               0,
                               0,
                               std::vector<uint32_t>(hparams.n_head_kv(layer.il)),
                               nullptr });
        }
        check_layers();
        init_shares();
        ring_pos.assign(restkv_ring_rows(params), -1);
        const std::string reason = method->refuse ? method->refuse(params, (uint32_t) layers.size()) : "";
        if (!reason.empty()) {
            throw std::runtime_error(reason);
        }
        for (layer_state & layer : layers) {
            layer.sums.assign(method->accumulates ? (size_t) layer.n_head_kv * params.capacity : 0, 0.0f);
        }
        if (method->uses_queries) {
            init_ring();
        }
        if (method->uses_wo && params.use_wo) {
            init_wo();
        }
        init_graphs();
    } catch (const std::exception & e) {
        restkv_fail(RESTKV_UNSUPPORTED, e.what());
        throw;
    }
}

void restkv_cache::check_layers() const {
    constexpr uint32_t D_MAX = 512;  // stack of the distance kernel
    if (layers.empty()) {
        throw std::runtime_error("this model has no layer with full attention: there is nothing to evict");
    }
    if (kv.map_layer_ids.size() > kv.layers.size()) {
        throw std::runtime_error("layers of this model share one cache, which cannot be evicted");
    }
    if (kv.has_cell_ext()) {
        throw std::runtime_error("this model keeps more than a position per cell, which cannot be evicted");
    }
    for (const layer_state & layer : layers) {
        if (layer.n_head_kv == 0 || layer.n_head % layer.n_head_kv != 0 || layer.d_k > D_MAX || layer.d_v > D_MAX) {
            throw std::runtime_error("layer " + std::to_string(layer.il) + " has " + std::to_string(layer.n_head) +
                                     " query heads, " + std::to_string(layer.n_head_kv) + " KV heads of size " +
                                     std::to_string(layer.d_k) + ", which the stages do not handle");
        }
        for (const ggml_tensor * t : { layer.k, layer.v }) {
            const uint32_t d = t == layer.k ? layer.d_k : layer.d_v;
            if (d % ggml_blck_size(t->type) != 0) {
                throw std::runtime_error(std::string("a KV head of size ") + std::to_string(d) +
                                         " cannot be moved in blocks of " + ggml_type_name(t->type) + ": use f16");
            }
        }
    }
}

void restkv_cache::init_ring() {
    std::map<ggml_backend_buffer_type_t, ggml_context *> contexts;
    for (layer_state & layer : layers) {
        ggml_backend_buffer_type_t buft =
            ggml_backend_buffer_get_type(layer.k->buffer ? layer.k->buffer : layer.k->view_src->buffer);
        if (contexts.find(buft) == contexts.end()) {
            ggml_init_params init = { layers.size() * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true };
            contexts[buft]        = ggml_init(init);
            buffers.emplace_back(contexts[buft], nullptr);
        }
        layer.ring = ggml_new_tensor_2d(contexts[buft], GGML_TYPE_F32, (int64_t) layer.n_head * layer.d_k,
                                        (int64_t) ring_pos.size() + 1);
        ggml_format_name(layer.ring, "restkv_ring_l%u", layer.il);
    }
    for (auto & [ctx, buffer] : buffers) {
        for (const auto & [buft, raw] : contexts) {
            if (raw == ctx.get()) {
                buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(raw, buft));
            }
        }
        if (!buffer) {
            throw std::runtime_error("not enough memory for the queries of the window");
        }
        ggml_backend_buffer_clear(buffer.get(), 0);
    }
}

void restkv_cache::init_wo() {
    std::vector<restkv_wo_shape> shapes;
    for (const layer_state & layer : layers) {
        shapes.push_back({ layer.il, layer.n_head, layer.d_v });
    }
    restkv_wo      wo        = restkv_read_wo(armed.path_model, armed.path_cache, shapes, params.n_threads);
    // with a quantized V the cache holds rotated values
    const uint32_t n_rotated = n_rot();
    for (const layer_state & layer : layers) {
        if (n_rotated > 0 && (layer.d_v % n_rotated != 0 || (n_rotated & (n_rotated - 1)) != 0)) {
            throw std::runtime_error("llama.cpp rotates values in pieces of " + std::to_string(n_rotated) +
                                     ", which the factors of W_o do not know: use a V cache of f16");
        }
    }
    const auto finish = [&](uint32_t l, uint32_t) {
        layer_state & layer = layers[l];
        layer.wo            = std::move(wo.layers[layer.il].data);
        for (uint32_t h = 0; n_rotated > 0 && h < layer.n_head; ++h) {
            restkv_rotate_factor(layer.wo.data() + (size_t) h * layer.d_v * layer.d_v, layer.d_v, n_rotated);
        }
    };
    restkv_parallel((uint32_t) layers.size(), restkv_threads(params.n_threads, (uint32_t) layers.size()), finish);
}

// As llama.cpp's own graph has it.
uint32_t restkv_cache::n_rot() const {
    const ggml_context_ptr ctx(ggml_init({ ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
    const ggml_tensor *    rot = kv.build_input_v_rot(ctx.get());
    return rot ? (uint32_t) rot->ne[0] : 0;
}

// ---- memory hooks ------------------------------------------------------------------------------

uint32_t restkv_cache::n_used() const {
    return kv.v_cells[0].get_used();
}

llama_pos restkv_cache::pos_of(uint32_t cell) const {
    return kv.v_cells[0].pos_get(cell);
}

void restkv_cache::clear() {
    n_table       = 0;
    pos_exact     = 0;
    cursor        = 0;
    lost          = false;
    votes_lost[0] = 0;
    forget_from(0);
    show_cells();
    std::fill(ring_pos.begin(), ring_pos.end(), -1);
}

bool restkv_cache::may_cut(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    const llama_pos pos_max = kv.v_cells[0].seq_pos_max(0);
    // the cells are those of sequence 0
    if (seq_id > 0 || p0 > pos_max || p1 <= p0 || (p0 <= 0 && p1 > pos_max)) {
        return true;
    }
    if (p1 <= pos_max) {
        restkv_fail(RESTKV_UNSUPPORTED, "a cache that evicts can only be cut at its end");
        return false;
    }
    if (p0 < pos_exact) {
        char text[128];
        snprintf(text, sizeof(text), "cells up to position %d have been evicted: read the text again from its start",
                 (int) pos_exact);
        restkv_fail(RESTKV_UNSUPPORTED, text);
        return false;
    }
    return true;
}

bool restkv_cache::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (!may_cut(seq_id, p0, p1)) {
        return false;
    }
    const llama_pos pos_max = kv.v_cells[0].seq_pos_max(0);
    if (seq_id <= 0 && p0 <= 0 && p1 > pos_max) {
        clear();
    } else if (seq_id <= 0 && p0 <= pos_max && p1 > p0) {
        forget_from(p0);
    }
    return true;
}

void restkv_cache::seq_keep(llama_seq_id seq_id) {
    if (seq_id != 0) {
        clear();
    }
}

bool restkv_cache::refuse(const char * operation) {
    char text[160];
    snprintf(text, sizeof(text),
             "%s is not possible in a cache that evicts: its KV heads hold different positions in the same cells",
             operation);
    restkv_fail(RESTKV_UNSUPPORTED, text);
    LLAMA_LOG_ERROR("%s\n", text);
    return true;
}

bool restkv_cache::find_slot(const llama_ubatch & ubatch, std::vector<uint32_t> & idxs) const {
    const uint32_t n = n_end();
    if (lost || ubatch.n_tokens > kv.get_size() - n) {
        return false;
    }
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        idxs.push_back(n + i);
    }
    return true;
}

restkv_status restkv_cache::say_full(restkv_status status) const {
    char text[128];
    snprintf(text, sizeof(text), "a batch must fit the %u cells of the reserve: decode smaller batches",
             params.capacity - params.budget);
    return restkv_fail(status, text);
}

bool restkv_cache::can_evict() const {
    if (lost) {
        say_lost();
        return false;
    }
    if (n_end() > n_row_max) {
        return true;
    }
    say_full(RESTKV_NOTHING);
    return false;
}

// ---- facts -------------------------------------------------------------------------------------

restkv_stats restkv_cache::stats() const {
    restkv_stats s = {};
    s.capacity     = params.capacity;
    s.budget       = params.budget;
    s.window       = params.window;
    s.n_layer      = (uint32_t) layers.size();
    s.pos_next     = kv.v_cells[0].seq_pos_max(0) + 1;
    s.pos_exact    = pos_exact;
    s.n_evictions  = n_evictions;
    s.n_evicted    = n_evicted;
    for (const layer_state & layer : layers) {
        s.n_head_kv = std::max(s.n_head_kv, layer.n_head_kv);
        s.bytes_kv += ggml_nbytes(layer.k) + ggml_nbytes(layer.v);
        s.bytes_ring += layer.ring ? ggml_nbytes(layer.ring) : 0;
        s.bytes_table += layer.table.size() * sizeof(int32_t);
        s.bytes_wo += layer.wo.size() * sizeof(float);
        s.bytes_sums += layer.sums.size() * sizeof(float);
        s.n_layer_graph += layer.stages == RESTKV_STAGES_GRAPH;
        s.n_layer_host += layer.stages == RESTKV_STAGES_HOST;
    }
    s.bytes_scratch = bytes_scratch;
    s.bytes_graph   = graph_bytes();
    snprintf(s.devices, sizeof(s.devices), "%s", graph_devices().c_str());
    snprintf(s.reason, sizeof(s.reason), "%s", graph_reason.c_str());
    count_cells(s);
    return s;
}

int32_t restkv_cache::kept(uint32_t il, uint32_t head_kv, int32_t * out, uint32_t n_max) const {
    for (const layer_state & layer : layers) {
        if (layer.il != il || head_kv >= layer.n_head_kv) {
            continue;
        }
        const uint32_t n_held = held(layer, head_kv);
        const uint32_t n      = n_held + n_end() - tail_begin();
        for (uint32_t i = 0; out && i < std::min(n, n_max); ++i) {
            out[i] = i < n_held ? layer.table[(size_t) head_kv * layer.budget + i] : pos_of(tail_begin() + i - n_held);
        }
        return (int32_t) n;
    }
    restkv_fail(RESTKV_INVALID,
                "layer " + std::to_string(il) + " has no evicting cache with a KV head " + std::to_string(head_kv));
    return -1;
}
