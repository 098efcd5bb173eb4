// restkv_recall_score_on: a recall on host arrays by the graphs, on any device. For tests, and for a check of a user's
// device.

#include "api/recall.h"
#include "api/score_run.h"
#include "graph/recall.h"

#include <algorithm>

restkv_status restkv_recall_score_on(const restkv_recall_args * args, const char * device, uint64_t tile_floats,
                                     float * scores, int32_t * chosen) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!args || !device || !scores || !chosen) {
            return restkv_fail(RESTKV_INVALID, "restkv_recall_score_on: no arguments");
        }
        const restkv_recall_args & a = *args;
        if (const restkv_status status = restkv_check_recall(a)) {
            return status;
        }
        const ggml_backend_dev_t found = restkv_find_device(device);
        if (!found) {
            return RESTKV_INVALID;
        }
        const auto         type = (ggml_type) a.type_k;
        restkv_device_rows rows(found, type, a.n_head, a.n_head_kv, a.n_embd_head, std::max(1u, a.n_own), 0);
        rows.layer.softcap = a.softcap;

        restkv_recall_view view = restkv_recall_view_of(a);
        if (a.n_own > 0) {
            ggml_backend_tensor_set(rows.layer.k, a.k_own, 0, a.n_own * view.own_row);
        }
        view.own = nullptr;
        restkv_recall_graph graph(found, rows.buft, type, { a.n_archive, a.n_own, a.n_rows, tile_floats },
                                  { rows.layer }, a.n_threads);
        const std::string   lacks = graph.missing(rows.layer);
        if (!lacks.empty()) {
            return restkv_fail(RESTKV_UNSUPPORTED, std::string(device) + " cannot run " + lacks + " for a recall");
        }
        graph.reserve(rows.layer);
        graph.look_at(rows.layer, 0);
        const size_t taken = graph.bytes();
        restkv_recall_arrays(a, view, &graph, scores, chosen);
        if (graph.bytes() != taken) {
            return restkv_fail(RESTKV_NO_MEMORY, "the work memory of a recall was not what it was planned to be");
        }
        return RESTKV_OK;
    });
}
