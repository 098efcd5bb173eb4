#include "cache/eviction.h"

#include "cache/fault.h"
#include "stages/parallel.h"

#include <algorithm>

restkv_eviction::restkv_eviction(restkv_core & core, restkv_plan & plan) :
    core(core),
    plan(plan),
    params(core.params),
    method(core.method),
    layers(core.layers),
    seq(core.seq),
    data(core.layers.size()) {}

void restkv_eviction::run(restkv_event & event) {
    const size_t n_copy  = sort_layers();
    uint32_t     n_tasks = (uint32_t) tasks.size();
    for (const std::vector<uint32_t> * some : { &joint, &copied, &as_graph }) {
        for (const uint32_t l : *some) {
            n_tasks = std::max(n_tasks, layers[l].n_head_kv);
        }
    }
    make_scratch(n_tasks);

    evict_in_memory();
    if (!as_graph.empty()) {
        evict_as_graphs(event);
    }
    evict_copied(n_copy);

    plan.moved = true;
    restkv_step("tables");
    take_tables(event);
    for (const restkv_scratch & s : scratch) {
        event.us_attend += s.times.attend / n_threads;
        event.us_score += s.times.score / n_threads;
        event.us_smooth += s.times.smooth / n_threads;
        event.us_select += s.times.select / n_threads;
        event.us_compact += s.times.compact / n_threads;
    }
    event.n_rows        = (uint32_t) plan.window.pos.size();
    event.n_threads     = n_threads;
    event.n_layer       = (uint32_t) layers.size();
    event.n_layer_graph = (uint32_t) as_graph.size();
    event.n_layer_host  = (uint32_t) copied.size();
    core.bytes_scratch += n_copy;
}

// Which way each layer goes. Returns the bytes of the largest that is copied to the host.
size_t restkv_eviction::sort_layers() {
    size_t n_copy = 0;
    for (uint32_t l = 0; l < layers.size(); ++l) {
        const restkv_layer & layer = layers[l];
        restkv_held &        own   = seq.layers[l];
        group                      = std::max(group, layer.group());
        d_k                        = std::max(d_k, layer.d_k);
        d_v                        = std::max(d_v, layer.d_v);
        kept.push_back({ std::vector<int32_t>(own.table.size()), std::vector<uint32_t>(layer.n_head_kv), {} });
        data[l].sums  = own.sums.empty() ? nullptr : own.sums.data();
        data[l].sinks = layer.read_sinks();
        if (layer.stages == RESTKV_STAGES_GRAPH) {
            as_graph.push_back(l);
            continue;
        }
        restkv_step("read");
        if (layer.ring) {
            data[l].read_ring(layer);
        }
        if (layer.stages == RESTKV_STAGES_HOST) {
            copied.push_back(l);
            n_copy = std::max(n_copy, (plan.n_end - layer.first) * (layer.k->nb[1] + layer.v->nb[1]));
            continue;
        }
        data[l].k = (uint8_t *) layer.k->data;
        data[l].v = (uint8_t *) layer.v->data;
        if (layer.mask) {
            joint.push_back(l);
            continue;
        }
        for (uint32_t h = 0; h < (method.per_layer ? 1 : layer.n_head_kv); ++h) {
            tasks.push_back({ l, h });
        }
    }
    return n_copy;
}

void restkv_eviction::make_scratch(uint32_t n_tasks) {
    const uint32_t n_rows = std::max<uint32_t>((uint32_t) plan.window.pos.size(), 1);
    n_threads             = restkv_threads(params.n_threads, n_tasks);
    for (uint32_t t = 0; t < n_threads; ++t) {
        restkv_step("scratch");
        scratch.emplace_back(plan.n_end, group, d_k, d_v, n_rows);
    }
    core.bytes_scratch = n_threads * restkv_scratch::bytes(plan.n_end, group, d_k, d_v, n_rows);
}

void restkv_eviction::evict_in_memory() {
    restkv_parallel((uint32_t) tasks.size(), n_threads, [&](uint32_t task, uint32_t thread) {
        const auto [l, h] = tasks[task];
        evict_head(l, h, scratch[thread]);
    });
    for (const uint32_t l : joint) {
        evict_shared(l);
    }
}

// For a device that lacks an operation, or was found wrong: one layer at a time is scored and moved in a copy.
void restkv_eviction::evict_copied(size_t n_copy) {
    std::vector<uint8_t> copy(n_copy);
    for (const uint32_t l : copied) {
        const restkv_layer & layer = layers[l];
        const size_t         n_row = plan.n_end - layer.first;
        data[l].k                  = copy.data();
        data[l].v                  = copy.data() + n_row * layer.k->nb[1];
        ggml_backend_tensor_get(layer.k, data[l].k, 0, n_row * layer.k->nb[1]);
        ggml_backend_tensor_get(layer.v, data[l].v, 0, n_row * layer.v->nb[1]);
        if (layer.mask) {
            evict_shared(l);
        } else {
            const uint32_t n = method.per_layer ? 1 : layer.n_head_kv;
            restkv_parallel(n, std::min(n_threads, n),
                            [&](uint32_t h, uint32_t thread) { evict_head(l, h, scratch[thread]); });
        }
        ggml_backend_tensor_set(layer.k, data[l].k, 0, layer.budget * layer.k->nb[1]);
        restkv_step("write");
        ggml_backend_tensor_set(layer.v, data[l].v, 0, layer.budget * layer.v->nb[1]);
    }
}

// The survivors are the text's cells now.
void restkv_eviction::take_tables(restkv_event & event) {
    uint64_t n_before = 0, n_after = 0, n_heads = 0;
    for (uint32_t l = 0; l < layers.size(); ++l) {
        const restkv_layer & layer = layers[l];
        const size_t         row   = ggml_row_size(layer.k->type, layer.d_k) + ggml_row_size(layer.v->type, layer.d_v);
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            n_before += n_doc(l, h);
            n_after += kept[l].held[h];
            event.bytes_moved += kept[l].held[h] * row;
        }
        n_heads += layer.n_head_kv;
    }
    for (uint32_t l = 0; l < layers.size(); ++l) {
        seq.layers[l].table = std::move(kept[l].table);
        seq.layers[l].held  = std::move(kept[l].held);
    }
    event.n_cells = (uint32_t) (n_before / n_heads);
    event.n_kept  = (uint32_t) (n_after / n_heads);
}

uint32_t restkv_eviction::n_doc(uint32_t l, uint32_t h) const {
    return seq.held(l, h) + (uint32_t) plan.tail_pos.size() - plan.n_guide;
}

uint32_t restkv_eviction::n_past(uint32_t l, uint32_t h) const {
    const uint32_t n = n_doc(l, h);
    return n - std::min(n, layers[l].n_window);
}

// Whether the drift of a head is measured: it cannot reach one step while all positions lie within one step.
bool restkv_eviction::drifts(const int32_t * pos, uint32_t n_cells) const {
    return method.pools && params.pooling == RESTKV_POOLING_ADAPTIVE && plan.window.pos.size() > 1 &&
           (int64_t) pos[n_cells - 1] - pos[0] > (int64_t) params.scale;
}
