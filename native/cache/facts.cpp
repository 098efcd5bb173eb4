// What a cache tells of itself.

#include "api/status.h"
#include "cache/core.h"
#include "cache/recaller.h"

#include <algorithm>
#include <cstdio>

restkv_stats restkv_core::stats() const {
    restkv_stats s = {};
    s.capacity     = params.capacity;
    s.budget       = params.budget;
    s.window       = params.window;
    s.n_layer      = (uint32_t) layers.size();
    s.pos_next     = cells->seq_pos_max(0) + 1;
    s.pos_exact    = seq.pos_exact;
    s.n_evictions  = seq.n_evictions;
    s.n_evicted    = seq.n_evicted;
    uint64_t sum = 0, n_heads = 0;
    for (uint32_t l = 0; l < layers.size(); ++l) {
        const restkv_layer & layer = layers[l];
        s.n_head_kv                = std::max(s.n_head_kv, layer.n_head_kv);
        s.bytes_kv += ggml_nbytes(layer.k) + ggml_nbytes(layer.v);
        s.bytes_ring += layer.ring ? ggml_nbytes(layer.ring) : 0;
        s.bytes_table += seq.layers[l].table.size() * sizeof(int32_t) + (layer.mask ? ggml_nbytes(layer.mask) : 0);
        s.bytes_wo += layer.wo.size() * sizeof(float);
        s.bytes_sums += seq.layers[l].sums.size() * sizeof(float);
        s.n_layer_graph += layer.stages == RESTKV_STAGES_GRAPH;
        s.n_layer_host += layer.stages == RESTKV_STAGES_HOST;
        n_heads += layer.n_head_kv;
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            sum += seq.held(l, h);
        }
    }
    s.n_cells       = (uint32_t) (sum / n_heads) + n_end() - seq.tail_begin();
    s.n_free        = n_cells() - n_end();
    s.bytes_scratch = bytes_scratch;
    s.bytes_graph   = devices.bytes() + (recaller ? recaller->on_devices().bytes() : 0);
    snprintf(s.devices, sizeof(s.devices), "%s", devices.names().c_str());
    snprintf(s.reason, sizeof(s.reason), "%s", devices.reason().c_str());
    return s;
}

int32_t restkv_core::kept(uint32_t il, uint32_t head_kv, int32_t * out, uint32_t n_max) const {
    for (uint32_t l = 0; l < layers.size(); ++l) {
        if (layers[l].il != il || head_kv >= layers[l].n_head_kv) {
            continue;
        }
        const uint32_t  n_held = seq.held(l, head_kv);
        const uint32_t  tail   = seq.tail_begin();
        const uint32_t  n      = n_held + n_end() - tail;
        const int32_t * table  = seq.layers[l].table.data() + (size_t) head_kv * layers[l].budget;
        for (uint32_t i = 0; out && i < std::min(n, n_max); ++i) {
            out[i] = i < n_held ? table[i] : pos_of(tail + i - n_held);
        }
        return (int32_t) n;
    }
    restkv_fail(RESTKV_INVALID,
                "layer " + std::to_string(il) + " has no evicting cache with a KV head " + std::to_string(head_kv));
    return -1;
}

// Memory of the host counts as the CPU's, also where a GPU's driver has pinned it.
std::string restkv_owner_of(ggml_backend_buffer_type_t buft) {
    const ggml_backend_dev_t device = ggml_backend_buft_get_device(buft);
    if (ggml_backend_buft_is_host(buft) || !device || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        return "CPU";
    }
    return ggml_backend_dev_name(device);
}

void restkv_core::add_memory(std::map<std::string, restkv_memory> & by_device) const {
    for (uint32_t l = 0; l < layers.size(); ++l) {
        const restkv_layer & layer = layers[l];
        const restkv_held &  held  = seq.layers[l];
        restkv_memory &      m = by_device[restkv_owner_of(ggml_backend_buffer_get_type(restkv_buffer_of(layer.k)))];
        m.n_layer++;
        m.bytes_kv += ggml_nbytes(layer.k) + ggml_nbytes(layer.v);
        m.bytes_ring += layer.ring ? ggml_nbytes(layer.ring) : 0;
        restkv_memory & host = by_device["CPU"];
        host.bytes_wo += layer.wo.size() * sizeof(float);
        host.bytes_table += held.table.size() * sizeof(int32_t) + held.sums.size() * sizeof(float);
    }
    for (const auto & graph : devices.graphs()) {
        restkv_memory & m = by_device[restkv_owner_of(graph->buffer_type())];
        m.bytes_wo += graph->factor_bytes();
        m.bytes_graph += graph->bytes() - graph->factor_bytes();
        by_device["CPU"].bytes_graph += graph->host_bytes();
    }
    if (!recaller) {
        return;
    }
    for (const auto & graph : recaller->on_devices().graphs()) {
        by_device[restkv_owner_of(graph->buffer_type())].bytes_graph += graph->bytes();
        by_device["CPU"].bytes_graph += graph->host_bytes();
    }
}
