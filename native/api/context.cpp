// The C API on models and contexts: arguments are checked here, the work is done elsewhere.

#include "restkv.h"

#include "api/params.h"
#include "cache/hooks.h"
#include "cache/look.h"
#include "cache/recaller.h"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>

uint32_t restkv_abi_version(void) {
    return RESTKV_ABI_VERSION;
}

bool restkv_abort_on_flag(void * flag) {
    return *(const volatile int32_t *) flag != 0;
}

// ---- models ------------------------------------------------------------------------------------

restkv_status restkv_model_probe(const llama_model * model, int32_t type_k, int32_t type_v, restkv_model_info * out) {
    return restkv_call(RESTKV_UNSUPPORTED, [&] {
        if (!model || !out || type_k < 0 || type_k >= GGML_TYPE_COUNT || type_v < 0 || type_v >= GGML_TYPE_COUNT) {
            return restkv_fail(RESTKV_INVALID, "restkv_model_probe: no model or an unknown cache type");
        }
        if (ggml_blck_size((ggml_type) type_k) == 0 || ggml_blck_size((ggml_type) type_v) == 0) {
            return restkv_fail(RESTKV_INVALID, "restkv_model_probe: a cache type that ggml no longer has");
        }
        const llama_hparams & hparams = model->hparams;

        restkv_model_info info;
        memset(&info, 0, sizeof(info));
        snprintf(info.arch, sizeof(info.arch), "%s", llm_arch_name(model->arch));
        info.n_ctx_train = hparams.n_ctx_train;

        std::string refusal = restkv_cache::refusal(*model);
        for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
            if (hparams.is_recr(il) || !hparams.has_kv(il) || hparams.n_head_kv(il) == 0) {
                info.n_layer_recurrent++;
                continue;
            }
            if (hparams.is_swa(il)) {
                info.n_layer_swa++;
                continue;
            }
            const uint32_t d_k = hparams.n_embd_head_k(il);
            const uint32_t d_v = hparams.n_embd_head_v(il);
            if (info.n_layer++ == 0) {
                info.n_head        = hparams.n_head(il);
                info.n_head_kv     = hparams.n_head_kv(il);
                info.n_embd_head_k = d_k;
                info.n_embd_head_v = d_v;
            }
            for (const auto & [type, d] : { std::pair(type_k, d_k), std::pair(type_v, d_v) }) {
                if (refusal.empty() && d % ggml_blck_size((ggml_type) type) != 0) {
                    refusal = "KV heads of size " + std::to_string(d) + " do not divide into blocks of " +
                              ggml_type_name((ggml_type) type) + ": choose f16";
                }
            }
            if (refusal.empty()) {
                info.bytes_per_cell += ggml_row_size((ggml_type) type_k, hparams.n_embd_k_gqa(il)) +
                                       ggml_row_size((ggml_type) type_v, hparams.n_embd_v_gqa(il));
            }
            info.bytes_window += (uint64_t) hparams.n_head(il) * d_k * sizeof(float);
        }
        if (refusal.empty() && info.n_layer == 0) {
            refusal = "this model has no layer with full attention: there is nothing to evict";
        }
        snprintf(info.refusal, sizeof(info.refusal), "%s", refusal.c_str());
        *out = info;
        return RESTKV_OK;
    });
}

// ---- contexts ----------------------------------------------------------------------------------

restkv_status restkv_arm(const restkv_params * params, const char * path_model, const char * path_cache) {
    return restkv_call(RESTKV_INVALID, [&] {
        if (!params) {
            return restkv_fail(RESTKV_INVALID, "restkv_arm: no settings");
        }
        if (const restkv_status status = restkv_check_params(*params)) {
            return status;
        }
        if (params->window < 1 || params->capacity <= params->budget || params->reduce == RESTKV_REDUCE_NONE) {
            return restkv_fail(RESTKV_INVALID,
                               "the window must not be empty, the capacity must be above the budget, and "
                               "the heads of a group share one set");
        }
        if (params->use_wo && restkv_find_method(params->method)->uses_wo && !path_model) {
            return restkv_fail(RESTKV_INVALID, "the model's file is needed for its output projections");
        }
        restkv_pending.reset(
            new restkv_settings{ *params, path_model ? path_model : "", path_cache ? path_cache : "", {}, {} });
        return RESTKV_OK;
    });
}

restkv_status restkv_arm_shares(const restkv_share_params * shares) {
    return restkv_call(RESTKV_INVALID, [&] {
        if (!restkv_pending || !shares) {
            return restkv_fail(RESTKV_INVALID, "restkv_arm_shares: nothing is armed, or no shares");
        }
        const restkv_params & p = restkv_pending->params;
        restkv_shares         s;
        s.kind = shares->kind;

        const restkv_method & method = *restkv_find_method(p.method);
        const std::string     quoted = "method '" + std::string(method.name) + "'";
        if (method.budgets == RESTKV_BUDGETS_ONE && s.kind != RESTKV_ALLOCATION_UNIFORM) {
            return restkv_fail(RESTKV_INVALID,
                               quoted + " needs one budget for all heads and layers: use allocation 'uniform'");
        }
        if (method.budgets == RESTKV_BUDGETS_LAYER && s.kind == RESTKV_ALLOCATION_ADA) {
            return restkv_fail(RESTKV_INVALID,
                               quoted + " keeps the same cells in every head: use allocation 'uniform'");
        }
        if (s.kind == RESTKV_ALLOCATION_PYRAMID) {
            uint64_t sum = 0;
            for (uint32_t i = 0; shares->budgets && i < shares->n_layer; ++i) {
                s.budgets.push_back(shares->budgets[i]);
                sum += shares->budgets[i];
            }
            s.n_past             = shares->n_past;
            const uint32_t least = s.n_past < 0 ? p.window : (uint32_t) s.n_past;
            if (s.budgets.empty() || sum != (uint64_t) s.budgets.size() * p.budget ||
                *std::min_element(s.budgets.begin(), s.budgets.end()) <= least) {
                return restkv_fail(RESTKV_INVALID,
                                   "the budgets of a pyramid must be above the window, and their mean must "
                                   "be the budget");
            }
        } else if (s.kind == RESTKV_ALLOCATION_ADA) {
            s.head_max = shares->head_max;
            s.floor    = shares->floor;
            if (s.head_max < p.budget || s.head_max > UINT32_MAX / 2 || !(s.floor >= 0.0 && s.floor <= 1.0)) {
                return restkv_fail(RESTKV_INVALID,
                                   "the limit of a head must not be below the budget, and the floor must be "
                                   "from 0 to 1");
            }
        } else if (s.kind != RESTKV_ALLOCATION_UNIFORM) {
            return restkv_fail(RESTKV_INVALID, "unknown allocation");
        }
        restkv_pending->shares = std::move(s);
        return RESTKV_OK;
    });
}

restkv_status restkv_arm_archive(const restkv_archive_params * archive) {
    return restkv_call(RESTKV_INVALID, [&] {
        if (!restkv_pending || !archive) {
            return restkv_fail(RESTKV_INVALID, "restkv_arm_archive: nothing is armed, or no archive");
        }
        const restkv_archive_params & a = *archive;
        const restkv_params &         p = restkv_pending->params;
        if (a.place < RESTKV_PLACE_NONE || a.place > RESTKV_PLACE_FILE || (a.place == RESTKV_PLACE_FILE && !a.path)) {
            return restkv_fail(RESTKV_INVALID, "an archive lies in memory or in a file, which needs a path");
        }
        for (const int32_t type : { a.type_k, a.type_v }) {
            if (type >= 0 && type != GGML_TYPE_Q8_0 && type != GGML_TYPE_Q4_0) {
                return restkv_fail(RESTKV_INVALID, "the rows of an archive are of the cache's type, q8_0 or q4_0");
            }
        }
        if (a.place != RESTKV_PLACE_NONE && (a.n_ctx == 0 || a.n_rows == 0 || a.kernel % 2 == 0)) {
            return restkv_fail(RESTKV_INVALID, "an archive needs positions, queries that speak, and an odd kernel");
        }
        if (a.place != RESTKV_PLACE_NONE && (uint64_t) a.sinks + p.window >= p.budget) {
            return restkv_fail(RESTKV_INVALID, "with an archive the budget (" + std::to_string(p.budget) +
                                                   ") must be above the " + std::to_string(a.sinks) +
                                                   " first positions and the window (" + std::to_string(p.window) +
                                                   ")");
        }
        restkv_pending->archive = { a, a.path ? a.path : "" };
        return RESTKV_OK;
    });
}

void restkv_disarm(void) {
    restkv_pending.reset();
}

// The cache of a context, or the failure of a call that needs one.
static restkv_cache & cache_of(llama_context * ctx) {
    llama_memory_i * memory = ctx ? ctx->get_memory() : nullptr;
    restkv_cache *   cache  = memory ? restkv_cache::of(*memory) : nullptr;
    if (!cache) {
        throw restkv_error(RESTKV_INVALID, "this context has no cache that evicts");
    }
    return *cache;
}

restkv_status restkv_evict(llama_context * ctx, uint32_t n_guide) {
    return restkv_call(RESTKV_NO_MEMORY, [&] { return cache_of(ctx).evict(ctx, n_guide); });
}

restkv_status restkv_recall(llama_context * ctx, uint32_t n_guide) {
    return restkv_call(RESTKV_NO_MEMORY, [&] { return cache_of(ctx).recall(ctx, n_guide); });
}

static restkv_recaller & recaller_of(llama_context * ctx) {
    restkv_recaller * recaller = cache_of(ctx).recaller();
    if (!recaller) {
        throw restkv_error(RESTKV_NOTHING, "this cache has no archive");
    }
    return *recaller;
}

restkv_status restkv_set_reading(llama_context * ctx, bool on, float below) {
    return restkv_call(RESTKV_INVALID, [&] {
        restkv_recaller & recaller = recaller_of(ctx);
        if (!(below >= 0.0f && below <= 1.0f)) {
            return restkv_fail(RESTKV_INVALID, "restkv_set_reading: the bound of a cosine is from 0 to 1");
        }
        ctx->synchronize();
        recaller.reading = on;
        recaller.below   = below;
        return recaller.take_failure();
    });
}

restkv_status restkv_get_archive(llama_context * ctx, restkv_archive_stats * out) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        const restkv_recaller & recaller = recaller_of(ctx);
        if (!out) {
            return restkv_fail(RESTKV_INVALID, "restkv_get_archive: nowhere to write");
        }
        *out = recaller.stats();
        return RESTKV_OK;
    });
}

// ---- sessions ----------------------------------------------------------------------------------

restkv_status restkv_hold_archive(llama_context * ctx, bool on) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        restkv_recaller & recaller = recaller_of(ctx);
        ctx->synchronize();
        if (on) {
            recaller.hold();
            return RESTKV_OK;
        }
        const bool fits = !recaller.held || recaller.fits_text();
        recaller.held   = false;
        if (!fits) {
            ctx->get_memory()->clear(false);
            return restkv_fail(RESTKV_STATE, "the rows of the archive are not those of the text in the cells");
        }
        return RESTKV_OK;
    });
}

restkv_status restkv_row_bytes(llama_context * ctx, uint32_t layer, uint64_t * k, uint64_t * v) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        const restkv_archive & archive = recaller_of(ctx).rows(false);
        if (layer >= archive.n_layer() || !k || !v) {
            return restkv_fail(RESTKV_INVALID, "restkv_row_bytes: no such layer, or nowhere to write");
        }
        *k = archive.row_k(layer);
        *v = archive.row_v(layer);
        return RESTKV_OK;
    });
}

// Whether the arrays have the sizes of the rows that they are said to hold.
static bool sized(const restkv_archive & archive, const restkv_archive_rows * rows) {
    return rows && rows->layer < archive.n_layer() && rows->k && rows->v && rows->n > 0 && rows->n <= archive.n_ctx() &&
           rows->n_k == rows->n * archive.row_k(rows->layer) && rows->n_v == rows->n * archive.row_v(rows->layer);
}

restkv_status restkv_read_rows(llama_context * ctx, const restkv_archive_rows * rows) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        const restkv_archive & archive = recaller_of(ctx).rows(false);
        if (!sized(archive, rows)) {
            return restkv_fail(RESTKV_INVALID, "restkv_read_rows: no such layer, or arrays of another size");
        }
        std::vector<uint8_t> buffer;
        memcpy(rows->k, archive.keys(rows->layer, rows->first, rows->n, buffer), rows->n_k);
        memcpy(rows->v, archive.values(rows->layer, rows->first, rows->n, buffer), rows->n_v);
        return RESTKV_OK;
    });
}

restkv_status restkv_cut_rows(llama_context * ctx, uint32_t n_rows) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        recaller_of(ctx).rows(true).truncate(n_rows);
        return RESTKV_OK;
    });
}

restkv_status restkv_write_rows(llama_context * ctx, const restkv_archive_rows * rows) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        restkv_archive & archive = recaller_of(ctx).rows(true);
        if (!sized(archive, rows)) {
            return restkv_fail(RESTKV_INVALID, "restkv_write_rows: no such layer, or arrays of another size");
        }
        archive.append(rows->layer, rows->first, rows->n, (const uint8_t *) rows->k, (const uint8_t *) rows->v, true);
        return RESTKV_OK;
    });
}

restkv_status restkv_commit_rows(llama_context * ctx, uint32_t n_rows) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        recaller_of(ctx).rows(true).commit(n_rows);
        return RESTKV_OK;
    });
}

// ---- facts -------------------------------------------------------------------------------------

restkv_status restkv_get_stats(llama_context * ctx, restkv_stats * out) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        const restkv_core & core = cache_of(ctx).facts();
        if (!out) {
            return restkv_fail(RESTKV_INVALID, "restkv_get_stats: nowhere to write");
        }
        *out = core.stats();
        return RESTKV_OK;
    });
}

uint32_t restkv_get_events(llama_context * ctx, restkv_event * out, uint32_t n_max) {
    uint32_t n = 0;
    restkv_call(RESTKV_NO_MEMORY, [&] {
        const auto & log = cache_of(ctx).facts().events;
        if (!out) {
            return restkv_fail(RESTKV_INVALID, "restkv_get_events: nowhere to write");
        }
        n = std::min(n_max, (uint32_t) log.size());
        std::copy(log.end() - n, log.end(), out);
        return RESTKV_OK;
    });
    return n;
}

int32_t restkv_kept(llama_context * ctx, uint32_t layer, uint32_t head_kv, int32_t * out, uint32_t n_max) {
    int32_t n = -1;
    restkv_call(RESTKV_NO_MEMORY, [&] {
        n = cache_of(ctx).facts().kept(layer, head_kv, out, n_max);
        return n < 0 ? restkv_last_status() : RESTKV_OK;
    });
    return n;
}

restkv_status restkv_look(llama_context * ctx, uint32_t n_rows, float * weights, uint32_t n, uint32_t * n_looked) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        const restkv_core & core = cache_of(ctx).facts();
        if (!weights || n == 0 || n_rows == 0) {
            return restkv_fail(RESTKV_INVALID, "restkv_look: no rows, or nowhere to write");
        }
        ctx->synchronize();
        const uint32_t n_found = restkv_look_at(core, n_rows, weights, n);
        if (n_looked) {
            *n_looked = n_found;
        }
        return RESTKV_OK;
    });
}
