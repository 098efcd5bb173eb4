// Making a cache that evicts: what is refused, its layers, their rings and matrices.

#include "api/params.h"
#include "cache/hooks.h"
#include "cache/recaller.h"
#include "cache/ring.h"
#include "stages/parallel.h"
#include "stages/wo.h"

#include "llama-model.h"

#include <algorithm>
#include <stdexcept>

namespace {

thread_local const restkv_core * being_made = nullptr;

// For as long as the constructor of llama_kv_cache runs.
class making {
public:
    making(const restkv_core * core) { being_made = core; }

    ~making() { being_made = nullptr; }
};

}  // namespace

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
                   "needs the rows of a layer in one place: use split_mode 1 (\"layer\")";
        }
    }
    return "";
}

uint32_t restkv_layer_rows(int il, uint32_t kv_size) {
    return being_made ? being_made->budgets[il] + being_made->reserve() : kv_size;
}

llama_kv_cache * restkv_new_cache(const llama_model & model, const llama_hparams & hparams, ggml_type type_k,
                                  ggml_type type_v, bool v_trans, bool offload, bool unified, uint32_t kv_size,
                                  uint32_t n_seq_max, uint32_t n_pad, uint32_t n_swa, llama_swa_type swa_type,
                                  llama_memory_t mem_other, const llama_kv_cache::layer_filter_cb & filter,
                                  const llama_kv_cache::layer_reuse_cb & reuse,
                                  const llama_kv_cache::layer_share_cb & share, const char * name_tag) {
    // the sliding-window part of a model keeps its own small cache
    if (!restkv_pending || swa_type != LLAMA_SWA_TYPE_NONE) {
        return new llama_kv_cache(model, hparams, type_k, type_v, v_trans, offload, unified, kv_size, n_seq_max, n_pad,
                                  n_swa, swa_type, mem_other, filter, reuse, share, name_tag);
    }
    const std::unique_ptr<restkv_settings> settings = std::move(restkv_pending);
    try {
        const std::string reason = restkv_cache::refusal(model);
        if (!reason.empty()) {
            throw restkv_error(RESTKV_UNSUPPORTED, "this cache cannot evict: " + reason);
        }
        if (v_trans) {
            throw restkv_error(RESTKV_INVALID, "this cache cannot evict: flash attention is off, which stores V "
                                               "transposed: turn it on");
        }
        if (n_seq_max > 1 || mem_other) {
            throw restkv_error(RESTKV_INVALID, "a cache that evicts holds one sequence: set n_seq_max to 1");
        }
        auto core = std::make_unique<restkv_core>(*settings, hparams);
        core->check_shares(model);
        const making guard(core.get());
        return new restkv_cache(std::move(core), model, hparams, type_k, type_v, offload, unified, n_pad, filter, reuse,
                                share, name_tag);
    } catch (...) {
        restkv_caught(RESTKV_UNSUPPORTED);
        throw;
    }
}

restkv_cache::restkv_cache(std::unique_ptr<restkv_core> made, const llama_model & model, const llama_hparams & hparams,
                           ggml_type type_k, ggml_type type_v, bool offload, bool unified, uint32_t n_pad,
                           const layer_filter_cb & filter, const layer_reuse_cb & reuse, const layer_share_cb & share,
                           const char * name_tag) :
    llama_kv_cache(model, hparams, type_k, type_v, /*v_trans =*/false, offload, unified, made->n_cells(),
                   /*n_seq_max =*/1, n_pad, /*n_swa =*/0, LLAMA_SWA_TYPE_NONE, /*mem_other =*/nullptr, filter, reuse,
                   share, name_tag),
    core(std::move(made)) {
    core->cells = &v_cells[0];
    init_layers();
    check_layers();
    core->init_shares();
    const restkv_method & method = core->method;
    const std::string     reason = method.refuse ? method.refuse(core->params, (uint32_t) core->layers.size()) : "";
    if (!reason.empty()) {
        throw std::runtime_error(reason);
    }
    const restkv_archive_params & archive     = core->settings.archive.params;
    const bool                    has_archive = archive.place != RESTKV_PLACE_NONE;
    core->seq.ring_pos.assign(std::max(restkv_ring_rows(core->params), has_archive ? archive.n_guide : 0), -1);
    if (method.uses_queries || has_archive) {
        restkv_init_ring(*core);
    }
    if (has_archive) {
        core->recaller = std::make_unique<restkv_recaller>(*core);
    }
    if (method.uses_wo && core->params.use_wo) {
        init_wo();
    }
    core->devices.init(core->layers, core->params, get_size(), core->n_row_max);
    claimed = this;
}

restkv_cache::~restkv_cache() {
    claimed = claimed == this ? nullptr : claimed;
}

void restkv_cache::init_layers() {
    for (const kv_layer & own : layers) {
        if (hparams.n_head_kv(own.il) == 0) {
            continue;  // a layer without attention
        }
        restkv_layer layer;
        layer.il        = own.il;
        layer.n_head    = hparams.n_head(own.il);
        layer.n_head_kv = hparams.n_head_kv(own.il);
        layer.d_k       = hparams.n_embd_head_k(own.il);
        layer.d_v       = hparams.n_embd_head_v(own.il);
        layer.softcap   = hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f;
        layer.k         = own.k_stream[0];
        layer.v         = own.v_stream[0];
        layer.budget    = core->budgets[own.il];
        layer.n_window  = core->params.window;

        restkv_held held;
        held.table.resize((size_t) layer.n_head_kv * layer.budget);
        held.held.resize(layer.n_head_kv);
        held.sums.assign(core->method.accumulates ? (size_t) layer.n_head_kv * core->params.capacity : 0, 0.0f);
        core->layers.push_back(std::move(layer));
        core->seq.layers.push_back(std::move(held));
    }
}

void restkv_cache::check_layers() const {
    constexpr uint32_t D_MAX = 512;  // stack of the distance kernel
    if (core->layers.empty()) {
        throw std::runtime_error("this model has no layer with full attention: there is nothing to evict");
    }
    if (map_layer_ids.size() > layers.size()) {
        throw std::runtime_error("layers of this model share one cache, which cannot be evicted");
    }
    if (has_cell_ext()) {
        throw std::runtime_error("this model keeps more than a position per cell, which cannot be evicted");
    }
    for (const restkv_layer & layer : core->layers) {
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

void restkv_cache::init_wo() {
    std::vector<restkv_wo_shape> shapes;
    for (const restkv_layer & layer : core->layers) {
        shapes.push_back({ layer.il, layer.n_head, layer.d_v });
    }
    const restkv_settings & settings  = core->settings;
    const uint32_t          n_threads = core->params.n_threads;
    restkv_wo               wo        = restkv_read_wo(settings.path_model, settings.path_cache, shapes, n_threads);
    // with a quantized V the cache holds rotated values
    const uint32_t          n_rotated = n_rot();
    for (const restkv_layer & layer : core->layers) {
        if (n_rotated > 0 && (layer.d_v % n_rotated != 0 || (n_rotated & (n_rotated - 1)) != 0)) {
            throw std::runtime_error("llama.cpp rotates values in pieces of " + std::to_string(n_rotated) +
                                     ", which the factors of W_o do not know: use a V cache of f16");
        }
    }
    const auto finish = [&](uint32_t l, uint32_t) {
        restkv_layer & layer = core->layers[l];
        layer.wo             = std::move(wo.layers[layer.il].data);
        for (uint32_t h = 0; n_rotated > 0 && h < layer.n_head; ++h) {
            restkv_rotate_factor(layer.wo.data() + (size_t) h * layer.d_v * layer.d_v, layer.d_v, n_rotated);
        }
    };
    const uint32_t n = (uint32_t) core->layers.size();
    restkv_parallel(n, restkv_threads(n_threads, n), finish);
}

// As llama.cpp's own graph has it.
uint32_t restkv_cache::n_rot() const {
    const ggml_context_ptr ctx(ggml_init({ ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
    const ggml_tensor *    rot = build_input_v_rot(ctx.get());
    return rot ? (uint32_t) rot->ne[0] : 0;
}
