// The text is cut at any position: what the heads held before it stays, and the last positions before it come back.

#include "cache/recaller.h"
#include "stages/parallel.h"

#include <algorithm>
#include <numeric>

// n of the positions before p0: the first and the last ones, then what is held, then what is not, highest first.
static std::vector<int32_t> held_before(int32_t p0, uint32_t n, uint32_t n_sinks, uint32_t n_window,
                                        const int32_t * table, uint32_t n_held) {
    const int32_t        first = (int32_t) n_sinks;
    const int32_t        end   = p0 - (int32_t) n_window;
    std::vector<int32_t> out(n_sinks + n_window);
    std::iota(out.begin(), out.begin() + n_sinks, 0);
    std::iota(out.begin() + n_sinks, out.end(), end);

    const int32_t * found = std::lower_bound(table, table + n_held, end);
    const int32_t * low   = std::lower_bound(table, found, first);
    for (const int32_t * p = found; p > low && out.size() < n; --p) {
        out.push_back(p[-1]);
    }
    for (int32_t pos = end - 1; pos >= first && out.size() < n; --pos) {
        if (!std::binary_search(low, found, pos)) {
            out.push_back(pos);
        }
    }
    std::sort(out.begin(), out.end());
    return out;
}

void restkv_recaller::cut(llama_pos p0) {
    const uint32_t n_threads = restkv_threads(core.params.n_threads, UINT32_MAX);
    const uint32_t n         = std::min(core.params.budget, (uint32_t) p0);
    forget_askers();
    for (uint32_t l = 0; l < core.layers.size(); ++l) {
        const restkv_layer & layer = core.layers[l];
        std::vector<int32_t> chosen;
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            std::vector<int32_t> own(n);
            std::iota(own.begin(), own.end(), 0);
            if ((uint32_t) p0 > n) {
                const int32_t * table = core.seq.layers[l].table.data() + (size_t) h * layer.budget;
                own = held_before(p0, n, core.settings.archive.params.sinks, core.params.window, table,
                                  core.seq.held(l, h));
            }
            chosen.insert(chosen.end(), own.begin(), own.end());
        }
        restkv_run_team(n_threads, [&](restkv_member & member) {
            fetch(l, chosen.data(), n, false, member);
            put(l, member);
        });
    }
    forget_from(p0);
}
