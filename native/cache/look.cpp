#include "cache/look.h"

#include "api/status.h"
#include "cache/fault.h"
#include "cache/view.h"
#include "stages/parallel.h"

#include <algorithm>
#include <mutex>

namespace {

// The largest weight of each cell.
class largest : public restkv_row_sink {
public:
    explicit largest(std::vector<float> & best) : best(best) {}

    void row(const restkv_row & row) override {
        for (uint32_t j = 0; j < row.n_visible; ++j) {
            best[j] = std::max(best[j], row.a[j]);
        }
    }

private:
    std::vector<float> & best;
};

}  // namespace

// A layer's keys and queries in host memory.
static restkv_host_rows read_layer(const restkv_layer & layer, uint32_t n_end, std::vector<uint8_t> & copy) {
    if (!layer.captured || layer.has_bias) {
        throw restkv_error(RESTKV_UNSUPPORTED,
                           "layer " + std::to_string(layer.il) + " has an attention of its own that leaves no queries");
    }
    restkv_host_rows rows;
    restkv_step("look");
    rows.k = (uint8_t *) layer.k->data;
    if (!ggml_backend_buffer_is_host(restkv_buffer_of(layer.k))) {
        copy.resize((n_end - layer.first) * layer.k->nb[1]);
        ggml_backend_tensor_get(layer.k, copy.data(), 0, copy.size());
        rows.k = copy.data();
    }
    rows.v     = rows.k;  // nothing reads the values
    rows.sinks = layer.read_sinks();
    rows.read_ring(layer);
    return rows;
}

uint32_t restkv_look_at(const restkv_core & core, uint32_t n_rows, float * weights, uint32_t n) {
    if (!core.layers[0].ring) {
        throw restkv_error(RESTKV_UNSUPPORTED, "this method keeps no queries: use another, or an archive");
    }
    const restkv_sequence::window window = core.seq.rows(core.cells->seq_pos_max(0) + 1, n_rows, false);
    if (window.pos.empty()) {
        throw restkv_error(RESTKV_GONE, "no queries of the last positions are stored: decode a token first");
    }
    const uint32_t n_end = core.n_end();
    uint32_t       group = 1, d_k = 1, n_heads = 1;
    for (const restkv_layer & layer : core.layers) {
        group   = std::max(group, layer.group());
        d_k     = std::max(d_k, layer.d_k);
        n_heads = std::max(n_heads, layer.n_head_kv);
    }
    const uint32_t              n_threads = restkv_threads(core.params.n_threads, n_heads);
    std::vector<restkv_scratch> scratch;
    for (uint32_t t = 0; t < n_threads; ++t) {
        scratch.emplace_back(n_end, group, d_k, 1, (uint32_t) window.pos.size());
    }
    std::mutex           mutex;
    std::vector<uint8_t> copy;
    for (uint32_t l = 0; l < core.layers.size(); ++l) {
        const restkv_layer &   layer = core.layers[l];
        const restkv_host_rows rows  = read_layer(layer, n_end, copy);
        restkv_parallel(layer.n_head_kv, std::min(n_threads, layer.n_head_kv), [&](uint32_t h, uint32_t thread) {
            restkv_scratch & s = scratch[thread];
            s.keys_of          = nullptr;  // the copy of another layer may lie at the same place
            restkv_view view   = restkv_view_of(core, l, h, rows, window, s);
            view.n_cells       = (uint32_t) core.kept(layer.il, h, s.pos.data(), s.n_pad);
            view.pos           = s.pos.data();
            view.q             = view.q ? view.q : restkv_read_queries(layer, h, rows, window, s);
            std::fill(s.smoothed.begin(), s.smoothed.end(), 0.0f);
            largest sink(s.smoothed);
            restkv_attend(view, s, 0, sink);

            const std::lock_guard<std::mutex> lock(mutex);
            for (uint32_t j = 0; j < view.n_cells && (uint32_t) view.pos[j] < n; ++j) {
                float & weight = weights[view.pos[j]];
                weight         = std::max(weight, s.smoothed[j]);
            }
        });
    }
    return (uint32_t) window.pos.size();
}
