// restkv_score_on: host arrays scored by the graphs, on any device. For tests, and for a check of a user's device.

#include "api/params.h"
#include "api/score_run.h"

#include "llama.h"

#include <cstring>
#include <stdexcept>

ggml_backend_dev_t restkv_find_device(const char * name) {
    llama_backend_init();  // finds the devices
    const ggml_backend_dev_t device = ggml_backend_dev_by_name(name);
    if (!device) {
        restkv_fail(RESTKV_INVALID, std::string("there is no device '") + name + "'");
    }
    return device;
}

restkv_status restkv_check_score_on(const restkv_score_args & args, const restkv_score_out & out) {
    if (const restkv_status status = restkv_check_score(args, out)) {
        return status;
    }
    if (!restkv_graph_scores_cells(restkv_graph_kind_of(args.params))) {
        return restkv_fail(RESTKV_UNSUPPORTED, std::string("method ") + args.params.method +
                                                   " with these settings is not scored by a graph");
    }
    if (args.n_rows > 0 && args.n_rows != args.params.window) {
        return restkv_fail(RESTKV_UNSUPPORTED, "restkv_score_on reads the queries of the window and no others");
    }
    return RESTKV_OK;
}

restkv_status restkv_score_on(const restkv_score_args * args, const char * device, uint64_t tile_floats,
                              restkv_score_out * out) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!args || !out || !device) {
            return restkv_fail(RESTKV_INVALID, "restkv_score_on: no arguments");
        }
        const ggml_backend_dev_t found = restkv_find_device(device);
        if (!found) {
            return RESTKV_INVALID;
        }
        if (const restkv_status status = restkv_check_score_on(*args, *out)) {
            return status;
        }
        restkv_score_run run(*args, found, tile_floats);
        if (!run.lacks.empty()) {
            return restkv_fail(RESTKV_UNSUPPORTED, restkv_lacks(device, run.lacks));
        }
        run.attend();
        run.choose(*out);
        return RESTKV_OK;
    });
}
