#include "stages/stages.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

void restkv_adapt(double t, uint32_t scale, uint32_t kernel, int32_t * kernel_out, int32_t * shift_out) {
    const double steps = std::floor(std::fabs(t) / scale);
    *kernel_out        = (int32_t) std::max((double) kernel, 2.0 * steps + 1.0);
    // the official code rounds a drift of exactly zero to a shift of one
    *shift_out         = (int32_t) std::floor(t / scale) + (t > 0.0 ? 0 : 1);
}

// Windows [center - r, center + r] in positions, clamped at the ends for the adaptive pooling: targets before the first
// (after the last) position all mean the first (last) cell.
void restkv_smooth(const float * raw, const int32_t * pos, uint32_t n, int32_t pooling, int32_t kernel, int32_t shift,
                   float * out) {
    if (n == 0) {
        return;
    }
    if (pooling == RESTKV_POOLING_NONE) {
        std::copy(raw, raw + n, out);
        return;
    }

    const int64_t r       = kernel / 2;
    const int64_t first   = pos[0];
    const int64_t last    = pos[n - 1];
    const bool    gapless = last - first + 1 == (int64_t) n;
    const bool    adapt   = pooling == RESTKV_POOLING_ADAPTIVE;

    uint32_t lo = 0;  // cells [lo, hi) lie in the window
    uint32_t hi = 0;
    for (uint32_t j = 0; j < n; ++j) {
        const int64_t center = pos[j] + (adapt ? (int64_t) shift : 0);
        while (lo < n && pos[lo] < center - r) {
            ++lo;
        }
        hi = std::max(hi, lo);
        while (hi < n && pos[hi] <= center + r) {
            ++hi;
        }

        if (pooling == RESTKV_POOLING_MAX) {
            out[j] = *std::max_element(raw + lo, raw + hi);
            continue;
        }

        float   sum   = 0.0f;
        int64_t found = hi - lo;
        for (uint32_t i = lo; i < hi; ++i) {
            sum += raw[i];
        }
        if (adapt) {
            const int64_t before = std::clamp<int64_t>(first - (center - r), 0, kernel);
            const int64_t after  = std::clamp<int64_t>((center + r) - last, 0, kernel);
            sum += (float) before * raw[0] + (float) after * raw[n - 1];
            found += before + after;
        }
        const int64_t divisor = !adapt && gapless ? kernel : found;
        out[j]                = found > 0 ? sum / (float) divisor : raw[j];
    }
}
