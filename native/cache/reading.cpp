// A ubatch recalls for itself: an operation in llama.cpp's graph, after the layer's rows are stored and before it attends,
// runs on the threads that compute the graph. It is an operation of the host, so on a device the queries are copied and
// the device waits, once per layer; it attends there all the same, through a backend of our own.

#include "cache/fault.h"
#include "cache/recaller.h"

#include "llama-graph.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

void restkv_recaller::add_to(const llm_graph_context & graph, ggml_tensor * q, int il) {
    const restkv_layer * layer = core.find_layer(il);
    if (!reading || !layer) {
        return;
    }
    node *        own     = &nodes[layer - core.layers.data()];
    ggml_tensor * args[1] = { q };
    ggml_tensor * op = ggml_custom_4d(graph.ctx0, GGML_TYPE_F32, 1, 1, 1, 1, args, 1, run_node, GGML_N_TASKS_MAX, own);
    ggml_format_name(op, "restkv_recall_l%d", il);
    // some backends say that they support whatever they are asked
    ggml_backend_sched_set_tensor_backend(graph.sched, op, graph.backend_cpu);
    ggml_build_forward_expand(graph.gf, op);
}

void restkv_recaller::run_node(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const node *  own = (const node *) userdata;
    restkv_member member(own->self->team, (uint32_t) ith, (uint32_t) nth);
    own->self->read_layer(own->l, dst->src[0], member);
}

void restkv_recaller::begin_ubatch(uint32_t l, const ggml_tensor * q) {
    const uint32_t n     = (uint32_t) q->ne[2];
    const uint32_t n_end = core.n_end();
    active               = status == RESTKV_OK && core.seq.n_table > 0;
    if (!active) {
        return;
    }
    restkv_step("reading");
    t_start = ggml_time_us();
    look_at(l, (uint32_t) core.seq.pos_exact, core.seq.tail_begin(), n_end);
    view.q         = (const uint8_t *) q->data;
    view.q_head    = q->nb[1];
    view.q_row     = q->nb[2];
    view.n_queries = n;
    view.row_pos.resize(n);
    for (uint32_t i = 0; i < n; ++i) {
        view.row_pos[i] = core.pos_of(n_end - n + i);
    }
    done.n_recalls += l == 0;
}

void restkv_recaller::read_layer(uint32_t l, const ggml_tensor * q, restkv_member & member) noexcept {
    member.run_first([&] { begin_ubatch(l, q); });
    if (active) {
        work.run(view, params(), member, devices.of(l));
        member.run_first([&] {
            done.us_score += ggml_time_us() - t_start;
            t_start = ggml_time_us();
        });
        fetch(l, work.chosen.data(), work.n_chosen, false, member);
        put(l, member);
    }
    if (member.i > 0) {
        return;
    }
    done.us_copy += active ? ggml_time_us() - t_start : 0;
    if (const std::exception_ptr error = team.take_error()) {
        try {
            std::rethrow_exception(error);
        } catch (...) {
            status = restkv_caught(RESTKV_NO_MEMORY);
            snprintf(why, sizeof(why), "%s", restkv_last_error());
        }
    }
}

restkv_status restkv_recaller::take_failure() {
    const restkv_status found = status;
    status                    = RESTKV_OK;
    return found == RESTKV_OK ? RESTKV_OK : restkv_fail(found, why);
}

void restkv_recaller::hold_first() {
    for (size_t l = 0; l < core.layers.size() && core.seq.n_table == 0; ++l) {
        restkv_held & held = core.seq.layers[l];
        for (uint32_t h = 0; h < core.layers[l].n_head_kv; ++h) {
            const uint32_t n = core.layers[l].budget;
            std::iota(held.table.begin() + (size_t) h * n, held.table.begin() + (size_t) (h + 1) * n, 0);
            held.held[h] = n;
        }
    }
}
