// A device that does its work as late as it may, for tests: what is handed to one of its queues runs when somebody waits for
// it, and not before. Memory that is written again, read or freed too early shows in the results, every time. The work
// itself is that of ggml's CPU backend, on memory that the host is told not to touch.

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-cpp.h"
#include "ggml-impl.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace {

ggml_backend_device & the_device();

// ---- work that waits ---------------------------------------------------------------------------

// A graph as it is now: its maker may change or free it before it runs.
class graph_copy {
public:
    explicit graph_copy(ggml_cgraph * gf) {
        for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
            nodes.push_back(copy(ggml_graph_node(gf, i)));
        }
    }

    ggml_status run(ggml_backend_t cpu) const {
        const ggml_context_ptr ctx(
            ggml_init({ ggml_graph_overhead_custom(nodes.size() + 1, false), nullptr, /*no_alloc =*/true }));
        ggml_cgraph * gf = ggml_new_graph_custom(ctx.get(), nodes.size() + 1, false);
        for (ggml_tensor * node : nodes) {
            ggml_graph_add_node(gf, node);
        }
        return ggml_backend_graph_compute(cpu, gf);
    }

private:
    ggml_tensor * copy(ggml_tensor * t) {
        if (!t) {
            return nullptr;
        }
        auto & own = copies[t];
        if (!own) {
            own                = std::make_unique<ggml_tensor>(*t);
            ggml_tensor * made = own.get();  // a node of the map stays where it is
            for (ggml_tensor *& src : made->src) {
                src = copy(src);
            }
            made->view_src = copy(made->view_src);
            return made;
        }
        return own.get();
    }

    std::map<ggml_tensor *, std::unique_ptr<ggml_tensor>> copies;
    std::vector<ggml_tensor *>                            nodes;
};

class queue {
public:
    queue() : cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr)) {}

    void add(std::function<void()> work) {
        waiting.push_back(std::move(work));
        n_added++;
    }

    void run_until(uint64_t n) {
        while (n_run < n) {
            const std::function<void()> work = std::move(waiting.front());
            waiting.pop_front();
            n_run++;
            work();
        }
    }

    void run_all() { run_until(n_added); }

    const ggml_backend_ptr cpu;
    uint64_t               n_added = 0;

private:
    std::deque<std::function<void()>> waiting;
    uint64_t                          n_run = 0;
};

struct event {
    queue *  of = nullptr;
    uint64_t n  = 0;

    void wait() const {
        if (of) {
            of->run_until(n);
        }
    }
};

queue & queue_of(ggml_backend_t backend) {
    return *(queue *) backend->context;
}

const ggml_backend_i BACKEND = {
    /* .get_name            = */ [](ggml_backend_t) { return "LATE0"; },
    /* .free                = */
    [](ggml_backend_t backend) {
        queue_of(backend).run_all();
        delete (queue *) backend->context;
        delete backend;
    },
    /* .set_tensor_async    = */
    [](ggml_backend_t backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
        uint8_t * to = (uint8_t *) tensor->data + offset;
        queue_of(backend).add([=] { memcpy(to, data, size); });
    },
    /* .get_tensor_async    = */
    [](ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
        const uint8_t * from = (const uint8_t *) tensor->data + offset;
        queue_of(backend).add([=] { memcpy(data, from, size); });
    },
    /* .set_tensor_2d_async = */ nullptr,
    /* .get_tensor_2d_async = */ nullptr,
    /* .cpy_tensor_async    = */ nullptr,
    /* .synchronize         = */ [](ggml_backend_t backend) { queue_of(backend).run_all(); },
    /* .graph_plan_create   = */ nullptr,
    /* .graph_plan_free     = */ nullptr,
    /* .graph_plan_update   = */ nullptr,
    /* .graph_plan_compute  = */ nullptr,
    /* .graph_compute       = */
    [](ggml_backend_t backend, ggml_cgraph * gf) {
        queue &    own = queue_of(backend);
        const auto now = std::make_shared<graph_copy>(gf);
        own.add([&own, now] { GGML_ASSERT(now->run(own.cpu.get()) == GGML_STATUS_SUCCESS); });
        return GGML_STATUS_SUCCESS;
    },
    /* .event_record        = */
    [](ggml_backend_t backend, ggml_backend_event_t e) {
        queue & own           = queue_of(backend);
        *(event *) e->context = { &own, own.n_added };
    },
    /* .event_wait          = */
    [](ggml_backend_t backend, ggml_backend_event_t e) {
        const event now = *(event *) e->context;
        queue_of(backend).add([=] { now.wait(); });
    },
    /* .graph_optimize      = */ nullptr,
};

// ---- memory ------------------------------------------------------------------------------------

constexpr size_t ALIGN = 64;

const ggml_backend_buffer_i BUFFER = {
    /* .free_buffer   = */ [](ggml_backend_buffer_t buffer) { ggml_aligned_free(buffer->context, buffer->size); },
    /* .get_base      = */ [](ggml_backend_buffer_t buffer) { return buffer->context; },
    /* .init_tensor   = */ nullptr,
    /* .memset_tensor = */
    [](ggml_backend_buffer_t, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
        memset((uint8_t *) t->data + offset, value, size);
    },
    /* .set_tensor    = */
    [](ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
        memcpy((uint8_t *) t->data + offset, data, size);
    },
    /* .get_tensor    = */
    [](ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t size) {
        memcpy(data, (const uint8_t *) t->data + offset, size);
    },
    /* .set_tensor_2d = */ nullptr,
    /* .get_tensor_2d = */ nullptr,
    /* .cpy_tensor    = */ nullptr,
    /* .clear         = */
    [](ggml_backend_buffer_t buffer, uint8_t value) { memset(buffer->context, value, buffer->size); },
    /* .reset         = */ nullptr,
};

// Its own memory, and memory of the host that it reads.
ggml_backend_buffer_type_t memory_type(bool host) {
    static const ggml_backend_buffer_type_i OWN = {
        /* .get_name       = */ [](ggml_backend_buffer_type_t) { return "LATE0"; },
        /* .alloc_buffer   = */
        [](ggml_backend_buffer_type_t self, size_t size) {
            void * data = ggml_aligned_malloc(std::max(size, ALIGN));
            return data ? ggml_backend_buffer_init(self, BUFFER, data, size) : nullptr;
        },
        /* .get_alignment  = */ [](ggml_backend_buffer_type_t) { return ALIGN; },
        /* .get_max_size   = */ nullptr,
        /* .get_alloc_size = */ nullptr,
        /* .is_host        = */ nullptr,
    };
    static const ggml_backend_buffer_type_i HOST = [] {
        ggml_backend_buffer_type_i type = OWN;
        type.get_name                   = [](ggml_backend_buffer_type_t) { return "LATE0_Host"; };
        type.is_host                    = [](ggml_backend_buffer_type_t) { return true; };
        return type;
    }();
    static ggml_backend_buffer_type types[2] = {
        { OWN,  &the_device(), nullptr },
        { HOST, &the_device(), nullptr },
    };
    return &types[host ? 1 : 0];
}

// ---- the device --------------------------------------------------------------------------------

void give_memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    *free = *total = (size_t) 8 << 30;
}

const ggml_backend_device_i DEVICE = {
    /* .get_name             = */ [](ggml_backend_dev_t) { return "LATE0"; },
    /* .get_description      = */ [](ggml_backend_dev_t) { return "works when it is waited for"; },
    /* .get_memory           = */ give_memory,
    /* .get_type             = */ [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; },
    /* .get_props            = */
    [](ggml_backend_dev_t device, ggml_backend_dev_props * props) {
        *props                  = {};
        props->name             = ggml_backend_dev_name(device);
        props->description      = ggml_backend_dev_description(device);
        props->type             = GGML_BACKEND_DEVICE_TYPE_GPU;
        props->caps.async       = true;
        props->caps.events      = true;
        props->caps.host_buffer = true;
        give_memory(device, &props->memory_free, &props->memory_total);
    },
    /* .init_backend         = */
    [](ggml_backend_dev_t device, const char *) {
        static ggml_guid guid = { 'l', 'a', 't', 'e' };
        return new ggml_backend{ &guid, BACKEND, device, new queue };
    },
    /* .get_buffer_type      = */ [](ggml_backend_dev_t) { return memory_type(false); },
    /* .get_host_buffer_type = */ [](ggml_backend_dev_t) { return memory_type(true); },
    /* .buffer_from_host_ptr = */ nullptr,
    /* .supports_op          = */
    [](ggml_backend_dev_t, const ggml_tensor * op) {
        return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op);
    },
    /* .supports_buft        = */
    [](ggml_backend_dev_t, ggml_backend_buffer_type_t type) { return type == memory_type(false); },
    /* .offload_op           = */ nullptr,
    /* .event_new            = */
    [](ggml_backend_dev_t device) { return new ggml_backend_event{ device, new event }; },
    /* .event_free           = */
    [](ggml_backend_dev_t, ggml_backend_event_t e) {
        delete (event *) e->context;
        delete e;
    },
    /* .event_synchronize    = */ [](ggml_backend_dev_t, ggml_backend_event_t e) { ((event *) e->context)->wait(); },
};

ggml_backend_reg_t the_registry() {
    static ggml_backend_reg registry = {
        GGML_BACKEND_API_VERSION,
        {
          /* .get_name         = */ [](ggml_backend_reg_t) { return "LATE"; },
          /* .get_device_count = */ [](ggml_backend_reg_t) { return (size_t) 1; },
          /* .get_device       = */ [](ggml_backend_reg_t, size_t) { return &the_device(); },
          /* .get_proc_address = */ nullptr,
          },
        nullptr,
    };
    return &registry;
}

ggml_backend_device & the_device() {
    static ggml_backend_device device = { DEVICE, nullptr, nullptr };
    device.reg                        = the_registry();
    return device;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_late_reg(void) {
    return the_registry();
}
