#include "stages/stages.h"

#include <algorithm>
#include <cmath>
#include <numeric>

// NaN counts as largest: an order that sorts need.
static float rank(float score) {
    return score == score ? score : INFINITY;
}

uint32_t restkv_select_top(const float * scores, uint32_t n, uint32_t n_keep, int32_t * out) {
    std::iota(out, out + n, 0);
    if (n_keep >= n) {
        return n;
    }
    std::nth_element(out, out + n_keep, out + n, [scores](int32_t a, int32_t b) {
        const float x = rank(scores[a]);
        const float y = rank(scores[b]);
        return x != y ? x > y : a < b;
    });
    std::sort(out, out + n_keep);
    return n_keep;
}
