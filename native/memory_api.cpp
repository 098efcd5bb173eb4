// restkv_get_memory: what a context takes, by the device that holds it.

#include "restkv-cache.h"

#include "evict.h"
#include "graph/graph.h"
#include "params.h"

#include "llama-context.h"
#include "llama-ext.h"
#include "llama-kv-cache.h"

#include <algorithm>
#include <map>

// Memory of the host counts as the CPU's, also where a GPU's driver has pinned it.
static std::string owner_of(ggml_backend_buffer_type_t buft) {
    const ggml_backend_dev_t device = ggml_backend_buft_get_device(buft);
    if (ggml_backend_buft_is_host(buft) || !device || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        return "CPU";
    }
    return ggml_backend_dev_name(device);
}

void restkv_cache::add_memory(std::map<std::string, restkv_memory> & by_device) const {
    for (const layer_state & layer : layers) {
        restkv_memory & m = by_device[owner_of(ggml_backend_buffer_get_type(restkv_buffer_of(layer.k)))];
        m.n_layer++;
        m.bytes_kv += ggml_nbytes(layer.k) + ggml_nbytes(layer.v);
        m.bytes_ring += layer.ring ? ggml_nbytes(layer.ring) : 0;
        restkv_memory & host = by_device["CPU"];
        host.bytes_wo += layer.wo.size() * sizeof(float);
        host.bytes_table += (layer.table.size() * sizeof(int32_t)) + layer.sums.size() * sizeof(float);
    }
    for (const auto & graph : graphs) {
        restkv_memory & m = by_device[owner_of(graph->buffer_type())];
        m.bytes_wo += graph->factor_bytes();
        m.bytes_graph += graph->bytes() - graph->factor_bytes();
        by_device["CPU"].bytes_graph += graph->host_bytes();
    }
}

uint32_t restkv_get_memory(llama_context * ctx, restkv_memory * out, uint32_t n_max) {
    if (!ctx || (!out && n_max > 0)) {
        restkv_fail(RESTKV_INVALID, "restkv_get_memory: no context, or nowhere to write");
        return 0;
    }
    std::map<std::string, restkv_memory> by_device;
    for (const auto & [buft, sizes] : llama_get_memory_breakdown(ctx)) {
        restkv_memory & m = by_device[owner_of(buft)];
        m.bytes_weights += sizes.model;
        m.bytes_other += sizes.context;  // of all caches; those of the evicting layers are taken out below
        m.bytes_compute += sizes.compute;
    }
    if (const restkv_cache * cache = restkv_find_cache(ctx)) {
        cache->add_memory(by_device);
    }
    uint32_t n = 0;
    for (auto & [name, m] : by_device) {
        m.bytes_other -= std::min(m.bytes_other, m.bytes_kv);
        snprintf(m.device, sizeof(m.device), "%s", name.c_str());
        if (const ggml_backend_dev_t device = ggml_backend_dev_by_name(name.c_str())) {
            size_t free = 0, total = 0;
            ggml_backend_dev_memory(device, &free, &total);
            m.memory_free  = free;
            m.memory_total = total;
        }
        if (n < n_max) {
            out[n] = m;
        }
        n++;
    }
    return n;
}
