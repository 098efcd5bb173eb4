// What a check of a user's device needs: the devices, rows moved and stages timed on one, and trust withdrawn from it.

#include "api/params.h"
#include "api/score_run.h"
#include "graph/trust.h"

#include "llama.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>

// ---- devices -----------------------------------------------------------------------------------

uint32_t restkv_device_count(void) {
    llama_backend_init();  // finds the devices
    return (uint32_t) ggml_backend_dev_count();
}

static void copy_text(char * to, size_t size, const char * text) {
    snprintf(to, size, "%s", text ? text : "");
}

restkv_status restkv_get_device(uint32_t i, restkv_device * out) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!out || i >= restkv_device_count()) {
            return restkv_fail(RESTKV_INVALID, "restkv_get_device: there is no such device");
        }
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        ggml_backend_dev_props   props;
        ggml_backend_dev_get_props(device, &props);

        memset(out, 0, sizeof(*out));
        copy_text(out->name, sizeof(out->name), props.name);
        copy_text(out->description, sizeof(out->description), props.description);
        copy_text(out->backend, sizeof(out->backend), ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)));
        copy_text(out->bus, sizeof(out->bus), props.device_id);
        switch (props.type) {
            case GGML_BACKEND_DEVICE_TYPE_CPU:
                out->kind = RESTKV_DEVICE_CPU;
                break;
            case GGML_BACKEND_DEVICE_TYPE_GPU:
                out->kind = RESTKV_DEVICE_GPU;
                break;
            case GGML_BACKEND_DEVICE_TYPE_IGPU:
                out->kind = RESTKV_DEVICE_IGPU;
                break;
            case GGML_BACKEND_DEVICE_TYPE_ACCEL:
                out->kind = RESTKV_DEVICE_ACCEL;
                break;
            case GGML_BACKEND_DEVICE_TYPE_META:
                out->kind = RESTKV_DEVICE_META;
                break;
        }
        const ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(device);
        out->host_memory                      = buft && ggml_backend_buft_is_host(buft);
        out->memory_free                      = props.memory_free;
        out->memory_total                     = props.memory_total;
        return RESTKV_OK;
    });
}

restkv_status restkv_distrust(const char * device, const char * reason) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!device) {
            return restkv_fail(RESTKV_INVALID, "restkv_distrust: no device");
        }
        if (!restkv_find_device(device)) {
            return RESTKV_INVALID;
        }
        restkv_set_distrust(device, reason ? reason : "");
        return RESTKV_OK;
    });
}

// ---- moves -------------------------------------------------------------------------------------

static restkv_status check_moves(const std::vector<const void *> & arrays, int32_t type_kv, uint32_t n_head_kv,
                                 uint32_t d, uint32_t n_cells, const int32_t * kept, uint32_t n_kept) {
    if (std::find(arrays.begin(), arrays.end(), nullptr) != arrays.end() || n_head_kv == 0 || d == 0 || n_kept == 0) {
        return restkv_fail(RESTKV_INVALID, "restkv_compact_on: an array is missing or empty");
    }
    if (!restkv_is_kv_type(type_kv, d)) {
        return restkv_fail(RESTKV_INVALID, "restkv_compact_on: rows must be F32, F16, BF16, Q8_0 or Q4_0, in whole "
                                           "blocks");
    }
    for (uint32_t h = 0; h < n_head_kv; ++h) {
        const int32_t * row = kept + (size_t) h * n_kept;
        for (uint32_t i = 0; i < n_kept; ++i) {
            if (row[i] < (int32_t) i || row[i] >= (int64_t) n_cells || (i > 0 && row[i] <= row[i - 1])) {
                return restkv_fail(RESTKV_INVALID, "restkv_compact_on: the rows must be ascending and exist");
            }
        }
    }
    return RESTKV_OK;
}

restkv_status restkv_compact_on(const char * device, int32_t type_kv, uint32_t n_head_kv, uint32_t n_embd_head,
                                uint32_t n_cells, void * k, void * v, const int32_t * kept, uint32_t n_kept,
                                uint64_t tile_floats) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (const restkv_status status =
                check_moves({ device, k, v, kept }, type_kv, n_head_kv, n_embd_head, n_cells, kept, n_kept)) {
            return status;
        }
        const ggml_backend_dev_t found = restkv_find_device(device);
        if (!found) {
            return RESTKV_INVALID;
        }
        restkv_params params = {};
        copy_text(params.method, sizeof(params.method), "fifo");  // nothing is scored
        restkv_device_rows rows(found, (ggml_type) type_kv, n_head_kv, n_head_kv, n_embd_head, n_cells, 0);
        restkv_graph       graph(found, rows.buft, params, { n_cells, 1, n_kept, tile_floats }, { rows.layer });
        const std::string  lacks = graph.missing(rows.layer);
        if (!lacks.empty()) {
            return restkv_fail(RESTKV_UNSUPPORTED, restkv_lacks(device, lacks));
        }
        graph.bind(rows.backend.get());
        const size_t bytes = ggml_nbytes(rows.layer.k);
        ggml_backend_tensor_set(rows.layer.k, k, 0, bytes);
        ggml_backend_tensor_set(rows.layer.v, v, 0, bytes);
        graph.move(rows.layer, kept, n_kept);
        graph.wait();
        ggml_backend_tensor_get(rows.layer.k, k, 0, bytes);
        ggml_backend_tensor_get(rows.layer.v, v, 0, bytes);
        return RESTKV_OK;
    });
}

// ---- times -------------------------------------------------------------------------------------

// The shortest of `rounds` after one that is not counted, in microseconds.
static uint64_t shortest(uint32_t rounds, const std::function<void()> & what) {
    int64_t best = INT64_MAX;
    for (uint32_t i = 0; i <= rounds; ++i) {
        const int64_t t_start = ggml_time_us();
        what();
        if (i > 0) {
            best = std::min(best, ggml_time_us() - t_start);
        }
    }
    return (uint64_t) best;
}

restkv_status restkv_time_on(const restkv_score_args * args, const char * device, uint32_t rounds,
                             restkv_device_times * out) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!args || !device || !out || rounds == 0) {
            return restkv_fail(RESTKV_INVALID, "restkv_time_on: no arguments, or no rounds");
        }
        const ggml_backend_dev_t found = restkv_find_device(device);
        if (!found) {
            return RESTKV_INVALID;
        }
        const restkv_score_args & a      = *args;
        const size_t              n_past = a.n_cells > a.params.window ? a.n_cells - a.params.window : 0;
        std::vector<float>        raw(a.n_head * n_past), smoothed(raw.size());
        std::vector<int32_t>      kernels(a.n_head), shifts(a.n_head), indices((size_t) a.n_head * a.params.budget);
        restkv_score_out scores = { raw.data(), smoothed.data(), kernels.data(), shifts.data(), indices.data() };
        if (const restkv_status status = restkv_check_score_on(a, scores)) {
            return status;
        }
        if (a.params.reduce == RESTKV_REDUCE_NONE) {
            return restkv_fail(RESTKV_INVALID, "restkv_time_on: the heads of a group must share one set");
        }
        restkv_score_run run(a, found, 0);
        if (!run.lacks.empty()) {
            return restkv_fail(RESTKV_UNSUPPORTED, restkv_lacks(device, run.lacks));
        }
        restkv_device_times times = {};
        times.us_attend           = shortest(rounds, [&] { run.attend(); });
        times.us_choose           = shortest(rounds, [&] { run.choose(scores); });
        times.us_compact          = shortest(rounds, [&] { run.move(indices.data()); });

        const uint64_t row = 2 * ggml_row_size((ggml_type) a.type_kv, (int64_t) a.n_head_kv * a.n_embd_head);
        times.bytes_attend = a.n_cells * row;
        times.bytes_moved  = 2 * std::min(a.params.budget, a.n_cells) * row;
        *out               = times;
        return RESTKV_OK;
    });
}

restkv_status restkv_copy_on(const char * device, uint64_t n_bytes, uint32_t rounds, uint64_t * us) {
    constexpr int64_t N_ROW = 4096;  // floats; many rows, so that a CPU shares them out
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        const int64_t n_rows = (int64_t) (n_bytes / (N_ROW * sizeof(float)));
        if (!device || !us || rounds == 0 || n_rows < 1 || n_bytes > SIZE_MAX / 4) {
            return restkv_fail(RESTKV_INVALID, "restkv_copy_on: no arguments, no rounds, or too few or too many bytes");
        }
        const ggml_backend_dev_t found = restkv_find_device(device);
        if (!found) {
            return RESTKV_INVALID;
        }
        const ggml_backend_ptr backend(ggml_backend_dev_init(found, nullptr));
        const ggml_context_ptr ctx(
            ggml_init({ 4 * ggml_tensor_overhead() + ggml_graph_overhead_custom(4, false), nullptr, true }));
        ggml_tensor * from = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, N_ROW, n_rows);
        ggml_tensor * copy = ggml_cpy(ctx.get(), from, ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, N_ROW, n_rows));
        if (!ggml_backend_dev_supports_op(found, copy)) {
            return restkv_fail(RESTKV_UNSUPPORTED, std::string(device) + " cannot copy inside its own memory");
        }
        ggml_cgraph * gf = ggml_new_graph_custom(ctx.get(), 4, false);
        ggml_build_forward_expand(gf, copy);
        const ggml_backend_buffer_ptr buffer(
            ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_dev_buffer_type(found)));
        if (!backend || !buffer) {
            return restkv_fail(RESTKV_NO_MEMORY, std::string(device) + " has no memory left to measure a copy");
        }
        restkv_use_threads(backend.get(), found, 0);
        ggml_backend_buffer_clear(buffer.get(), 0);
        *us = shortest(rounds, [&] {
            if (ggml_backend_graph_compute(backend.get(), gf) != GGML_STATUS_SUCCESS) {
                throw restkv_error(RESTKV_NO_MEMORY, std::string(device) + " failed to copy");
            }
        });
        return RESTKV_OK;
    });
}
