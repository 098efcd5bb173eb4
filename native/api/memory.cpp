// restkv_get_memory: what a context takes, by the device that holds it.

#include "api/status.h"
#include "cache/hooks.h"

#include "llama-context.h"
#include "llama-ext.h"

#include <algorithm>
#include <map>

uint32_t restkv_get_memory(llama_context * ctx, restkv_memory * out, uint32_t n_max) {
    uint32_t n = 0;
    restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!ctx || (!out && n_max > 0)) {
            return restkv_fail(RESTKV_INVALID, "restkv_get_memory: no context, or nowhere to write");
        }
        std::map<std::string, restkv_memory> by_device;
        for (const auto & [buft, sizes] : llama_get_memory_breakdown(ctx)) {
            restkv_memory & m = by_device[restkv_owner_of(buft)];
            m.bytes_weights += sizes.model;
            m.bytes_other += sizes.context;  // of all caches; those of the evicting layers are taken out below
            m.bytes_compute += sizes.compute;
        }
        const llama_memory_i * memory = ctx->get_memory();
        if (const restkv_cache * cache = memory ? restkv_cache::of(*memory) : nullptr) {
            cache->facts().add_memory(by_device);
        }
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
        return RESTKV_OK;
    });
    return n;
}
