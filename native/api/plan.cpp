// restkv_plan_graph and restkv_plan_recall: what the graphs of a device will take, before a model is loaded there.

#include "api/params.h"
#include "api/score_run.h"
#include "graph/graph.h"
#include "graph/recall.h"
#include "graph/trust.h"
#include "methods/methods.h"

#include "llama.h"

#include <algorithm>
#include <stdexcept>

// A layer's tensors without memory. `none` stands for memory that they would have.
static restkv_graph_layer outline(ggml_context * ctx, ggml_backend_buffer_t none, const restkv_params & params,
                                  const restkv_layer_shape & shape) {
    const restkv_method & method = *restkv_find_method(params.method);
    const int64_t         d_k = shape.n_embd_head_k, d_v = shape.n_embd_head_v;
    restkv_graph_layer    layer;
    layer.k = ggml_new_tensor_2d(ctx, (ggml_type) shape.type_k, shape.n_head_kv * d_k, shape.n_cells);
    layer.v = ggml_new_tensor_2d(ctx, (ggml_type) shape.type_v, shape.n_head_kv * d_v, shape.n_cells);
    if (method.uses_queries) {
        const uint32_t rows = restkv_ring_rows(params) + 1;
        layer.ring          = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, shape.n_head * d_k, rows);
    }
    if (method.uses_wo && params.use_wo) {
        layer.wo = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, d_v, d_v, shape.n_head);
    }
    if (shape.hides) {
        layer.hidden = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, shape.n_cells, shape.n_head_kv);
    }
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        t->buffer = none;
    }
    layer.n_head    = shape.n_head;
    layer.n_head_kv = shape.n_head_kv;
    layer.d_k       = shape.n_embd_head_k;
    layer.d_v       = shape.n_embd_head_v;
    return layer;
}

static bool is_layer(const restkv_params & params, const restkv_layer_shape & shape) {
    return shape.n_kept >= params.budget && shape.n_cells >= shape.n_kept && shape.n_head_kv > 0 && shape.n_head > 0 &&
           shape.n_head % shape.n_head_kv == 0 && restkv_is_kv_type(shape.type_k, shape.n_embd_head_k) &&
           restkv_is_kv_type(shape.type_v, shape.n_embd_head_v);
}

restkv_status restkv_plan_graph(const restkv_params * params, const restkv_layer_shape * shape, const char * device,
                                uint64_t * bytes_device, uint64_t * bytes_host) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!params || !shape || !device || !bytes_device || !bytes_host) {
            return restkv_fail(RESTKV_INVALID, "restkv_plan_graph: no arguments");
        }
        if (const restkv_status status = restkv_check_params(*params)) {
            return status;
        }
        if (!is_layer(*params, *shape)) {
            return restkv_fail(RESTKV_INVALID, "restkv_plan_graph: there is no such layer");
        }
        const ggml_backend_dev_t found = restkv_find_device(device);
        if (!found) {
            return RESTKV_INVALID;
        }
        *bytes_device = *bytes_host = 0;
        if (restkv_graph_kind_of(*params) == RESTKV_GRAPH_NONE || !restkv_distrusted(device).empty()) {
            return RESTKV_OK;
        }
        const ggml_context_ptr        ctx(ggml_init({ 5 * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
        const ggml_backend_buffer_ptr none(ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(found), 0));
        const restkv_graph::needs     needs =
            restkv_graph::measure(found, *params, restkv_graph::sizes_of(*params, shape->n_cells, shape->n_kept),
                                  outline(ctx.get(), none.get(), *params, *shape));
        *bytes_device = needs.device;
        *bytes_host   = needs.host;
        return RESTKV_OK;
    });
}

restkv_status restkv_plan_recall(const restkv_params * params, const restkv_archive_params * archive,
                                 const restkv_layer_shape * shape, const char * device, uint64_t * bytes_device,
                                 uint64_t * bytes_host) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!params || !archive || !shape || !device || !bytes_device || !bytes_host) {
            return restkv_fail(RESTKV_INVALID, "restkv_plan_recall: no arguments");
        }
        if (const restkv_status status = restkv_check_params(*params)) {
            return status;
        }
        const int32_t type = archive->type_k < 0 ? shape->type_k : archive->type_k;
        if (!is_layer(*params, *shape) || !restkv_is_kv_type(type, shape->n_embd_head_k) || archive->n_ctx == 0 ||
            archive->n_rows == 0) {
            return restkv_fail(RESTKV_INVALID, "restkv_plan_recall: there is no such layer or archive");
        }
        const ggml_backend_dev_t found = restkv_find_device(device);
        if (!found) {
            return RESTKV_INVALID;
        }
        *bytes_device = *bytes_host = 0;
        if (!restkv_distrusted(device).empty()) {
            return RESTKV_OK;
        }
        const ggml_context_ptr           ctx(ggml_init({ 5 * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
        const ggml_backend_buffer_ptr    none(ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(found), 0));
        const restkv_recall_graph::sizes most  = { archive->n_ctx, params->capacity - params->budget, archive->n_rows,
                                                   0 };
        const restkv_recall_graph::needs needs = restkv_recall_graph::measure(
            found, (ggml_type) type, most, outline(ctx.get(), none.get(), *params, *shape));
        *bytes_device = needs.device;
        *bytes_host   = needs.host;
        return RESTKV_OK;
    });
}
