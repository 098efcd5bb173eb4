// SnapKV (Li et al., 2024), as the ReST-KV repository runs it: attention of the window, summed over its rows.

#include "methods.h"

#include <algorithm>

namespace {

class sum_rows : public restkv_row_sink {
public:
    sum_rows(const restkv_view & view, restkv_scratch & scratch) : view(view), scratch(scratch) {}

    void row(const restkv_row & r) override {
        float * raw = scratch.raw.data() + (size_t) r.head * scratch.n_pad;
        restkv_cpu_kernels()->axpy(1.0f, r.a, std::min(r.n_visible, view.n_past), raw);
    }

private:
    const restkv_view & view;
    restkv_scratch &    scratch;
};

void score(const restkv_view & view, const restkv_params &, uint32_t drift_top, restkv_scratch & scratch) {
    std::fill(scratch.raw.begin(), scratch.raw.end(), 0.0f);
    sum_rows sink(view, scratch);
    restkv_attend(view, scratch, drift_top, sink);
}

}  // namespace

const restkv_method restkv_method_snapkv = {
    "snapkv", "attention of the window, pooled", true, false, true, score,
};
