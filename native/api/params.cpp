#include "api/params.h"

#include "methods/methods.h"

#include <cmath>
#include <cstring>

restkv_status restkv_check_params(const restkv_params & p) {
    if (!memchr(p.method, 0, sizeof(p.method)) || !restkv_find_method(p.method)) {
        return restkv_fail(RESTKV_INVALID, "unknown eviction method");
    }
    if ((p.window < 1 && restkv_find_method(p.method)->pools) || p.budget <= p.window) {
        return restkv_fail(RESTKV_INVALID, "the budget (" + std::to_string(p.budget) + ") must be above the window (" +
                                               std::to_string(p.window) + ")");
    }
    if (p.kernel % 2 == 0 || p.scale < 1) {
        return restkv_fail(RESTKV_INVALID, "the kernel must be odd and the scale at least 1");
    }
    if (p.pooling < RESTKV_POOLING_NONE || p.pooling > RESTKV_POOLING_ADAPTIVE || p.metric_mode < RESTKV_METRIC_AFTER ||
        p.metric_mode > RESTKV_METRIC_BEFORE || p.reduce < RESTKV_REDUCE_NONE || p.reduce > RESTKV_REDUCE_MAX) {
        return restkv_fail(RESTKV_INVALID, "unknown pooling, metric mode or reduction");
    }
    if (p.indicator < RESTKV_INDICATOR_RECONSTRUCTION || p.indicator > RESTKV_INDICATOR_ATTENTION_V ||
        p.rows < RESTKV_ROWS_AUTO || p.rows > RESTKV_ROWS_SUM) {
        return restkv_fail(RESTKV_INVALID, "unknown indicator or weighting of the rows");
    }
    if ((p.rows == RESTKV_ROWS_SUM || p.rows == RESTKV_ROWS_MAX) && p.indicator == RESTKV_INDICATOR_RECONSTRUCTION) {
        return restkv_fail(RESTKV_INVALID,
                           "the sum of the rows, or the largest, is no attention: the reconstruction needs an average");
    }
    if (!std::isfinite(p.alpha) || p.alpha > 1.0f || !std::isfinite(p.tau) || p.tau < 0.0f) {
        return restkv_fail(RESTKV_INVALID, "alpha must be at most 1 and tau at least 0");
    }
    if (p.stages > RESTKV_STAGES_HOST) {
        return restkv_fail(RESTKV_INVALID, "unknown way to run the stages");
    }
    return RESTKV_OK;
}
