// A ubatch recalls for itself: an operation in llama.cpp's graph, after the layer's rows are stored and before it attends,
// runs on the threads that compute the graph. It is an operation of the host, so on a device the queries are copied and
// the device waits, once per layer; it attends there all the same, through a backend of our own.

#include "cache/fault.h"
#include "cache/recaller.h"

#include "llama-graph.h"

#include <algorithm>
#include <cmath>
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

// The mean over the heads of the cosine between two queries of a layer; that of a query of zeros is 0. a_head: bytes
// from head to head of a; those of b are one behind the other.
static double likeness(const uint8_t * a, size_t a_head, const float * b, uint32_t n_head, uint32_t d) {
    double sum = 0.0;
    for (uint32_t h = 0; h < n_head; ++h) {
        const float * x  = (const float *) (a + h * a_head);
        const float * y  = b + (size_t) h * d;
        double        xx = 0.0, yy = 0.0, xy = 0.0;
        for (uint32_t i = 0; i < d; ++i) {
            xx += (double) x[i] * x[i];
            yy += (double) y[i] * y[i];
            xy += (double) x[i] * y[i];
        }
        sum += xx > 0.0 && yy > 0.0 ? xy / (std::sqrt(xx) * std::sqrt(yy)) : 0.0;
    }
    return sum / n_head;
}

// The query of a ubatch's last token.
static const uint8_t * last_of(const ggml_tensor * q) {
    return (const uint8_t *) q->data + (q->ne[2] - 1) * q->nb[2];
}

bool restkv_recaller::asks_anew(uint32_t l, const ggml_tensor * q) const {
    const asker &        before = askers[l];
    const restkv_layer & layer  = core.layers[l];
    return below <= 0.0f || before.pos_exact != core.seq.pos_exact ||
           likeness(last_of(q), q->nb[1], before.q.data(), layer.n_head, layer.d_k) < below;
}

void restkv_recaller::remember(uint32_t l, const uint8_t * q, size_t q_head, llama_pos pos_exact) {
    const restkv_layer & layer = core.layers[l];
    for (uint32_t h = 0; h < layer.n_head; ++h) {
        std::copy_n((const float *) (q + h * q_head), layer.d_k, askers[l].q.data() + (size_t) h * layer.d_k);
    }
    askers[l].pos_exact = pos_exact;
}

void restkv_recaller::begin_ubatch(uint32_t l, const ggml_tensor * q) {
    const uint32_t n     = (uint32_t) q->ne[2];
    const uint32_t n_end = core.n_end();
    active               = status == RESTKV_OK && core.seq.n_table > 0 && asks_anew(l, q);
    counted              = counted && l > 0;
    if (!active) {
        return;
    }
    askers[l].pos_exact = -1;  // until it has been done
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
    done.n_layers++;
    done.n_recalls += !counted;
    counted = true;
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
    } else if (active) {
        remember(l, last_of(q), q->nb[1], core.seq.pos_exact);
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
