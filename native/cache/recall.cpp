// A question recalls in all layers: first every layer chooses, then rows move.

#include "cache/fault.h"
#include "cache/recaller.h"
#include "cache/view.h"
#include "stages/parallel.h"

#include <algorithm>
#include <cstring>

std::string restkv_recaller::recall(const restkv_sequence::window & window, uint32_t n_text, uint32_t own_first,
                                    uint32_t own_end, bool & moved) {
    const uint32_t n_layer   = (uint32_t) core.layers.size();
    const uint32_t n_threads = restkv_threads(core.params.n_threads, UINT32_MAX);
    const uint32_t n         = std::min(core.params.budget, n_text);

    std::vector<std::vector<int32_t>> chosen(n_layer);

    t_start = ggml_time_us();
    restkv_run_team(n_threads, [&](restkv_member & member) {
        for (uint32_t l = 0; l < n_layer; ++l) {
            member.run_first([&] {
                const restkv_layer & layer = core.layers[l];
                const size_t         row   = (size_t) layer.n_head * layer.d_k;
                restkv_step("recall");
                look_at(l, n_text, own_first, own_end);
                restkv_host_rows rows;
                rows.read_ring(layer);
                asked.resize(window.pos.size() * row);
                for (size_t i = 0; i < window.slots.size(); ++i) {
                    std::copy_n(rows.ring.data() + window.slots[i] * row, row, asked.data() + i * row);
                }
                view.q         = (const uint8_t *) asked.data();
                view.q_head    = layer.d_k * sizeof(float);
                view.q_row     = row * sizeof(float);
                view.n_queries = (uint32_t) window.pos.size();
                view.row_pos   = window.pos;
            });
            work.run(view, params(), member, devices.of(l));
            member.run_first([&] {
                chosen[l] = work.chosen;
                remember(l, (const uint8_t *) (asked.data() + asked.size() - (size_t) view.n_head * view.d_k),
                         view.d_k * sizeof(float), -1);
            });
        }
    });
    done.us_score += ggml_time_us() - t_start;

    t_start = ggml_time_us();
    std::string kept;
    for (uint32_t l = 0; l < n_layer; ++l) {
        const auto bring = [&](bool live_only) {
            restkv_run_team(n_threads,
                            [&](restkv_member & member) { fetch(l, chosen[l].data(), n, live_only, member); });
        };
        bool own = true;
        try {
            bring(false);
        } catch (const restkv_error & e) {
            if (e.status != RESTKV_ARCHIVE) {
                throw;
            }
            // what is in the cells is whole: of it the first positions and the last ones
            kept                   = kept.empty() ? e.what() : kept;
            const uint32_t n_head  = core.layers[l].n_head_kv;
            const uint32_t n_sinks = std::min(core.settings.archive.params.sinks, n);
            for (uint32_t h = 0; h < n_head; ++h) {
                const std::vector<int32_t> live = live_of(l, h, n_text);
                int32_t *                  to   = chosen[l].data() + (size_t) h * n;
                std::copy_n(live.begin(), n_sinks, to);
                std::copy_n(live.end() - (n - n_sinks), n - n_sinks, to + n_sinks);
            }
            bring(true);
            own = false;
        }
        moved = true;
        restkv_run_team(n_threads, [&](restkv_member & member) { put(l, member); });
        askers[l].pos_exact = own ? (llama_pos) n_text : -1;
    }
    done.us_copy += ggml_time_us() - t_start;
    done.n_recalls++;
    done.n_layers += n_layer;
    return kept;
}
