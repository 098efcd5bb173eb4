#include "stages.h"

#include <algorithm>
#include <numeric>

uint32_t restkv_select_top(const float * scores, uint32_t n, uint32_t n_keep, int32_t * out) {
    std::iota(out, out + n, 0);
    if (n_keep >= n) {
        return n;
    }
    std::nth_element(out, out + n_keep, out + n,
                     [scores](int32_t a, int32_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
    std::sort(out, out + n_keep);
    return n_keep;
}
