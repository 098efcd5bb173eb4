// A recall of one layer on its device. Threads of the host pack a panel of keys; the first of them hands it over.
//
//   packed        panel i
//   copied        panel i - 1      where the device has a queue and events, else one after the other
//   multiplied    panel i - 2
//
// The host waits for every copy before it queues what reads it: no backend is asked to wait for an event of another one.

#include "api/status.h"
#include "graph/product.h"
#include "graph/recall.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

void restkv_recall_graph::init_stages() {
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(device, &props);
    stages.resize(2);
    bool both = props.caps.async && props.caps.events;
    for (stage & x : stages) {
        x.copied.reset(both ? ggml_backend_event_new(device) : nullptr);
        x.computed.reset(both ? ggml_backend_event_new(device) : nullptr);
        both = both && x.copied && x.computed;
    }
    if (!both) {
        stages.resize(1);
    }
}

// Copies may be left to a device only in memory that it reads itself, where there is such memory.
void restkv_recall_graph::init_staging() {
    constexpr size_t ALIGN = 64;

    const ggml_backend_buffer_type_t pinned = ggml_backend_dev_host_buffer_type(device);
    const auto                       size   = [](const ggml_tensor * t) { return GGML_PAD(ggml_nbytes(t), ALIGN); };
    const size_t                     floats = size(queries) + size(pos) + size(sinks) + size(scores);
    const auto                       fill   = [&](ggml_backend_buffer_type_t type) {
        const size_t n = floats + stages.size() * size(stages[0].keys);
        if (dry) {
            dry_staging = n;
            return true;
        }
        staging.reset(ggml_backend_buft_alloc_buffer(type, n));
        if (!staging) {
            throw restkv_error(RESTKV_NO_MEMORY, "not enough memory on the host for the keys of a recall");
        }
        return ggml_backend_buffer_get_type(staging.get()) == type;
    };
    if (!fill(ahead() && pinned ? pinned : ggml_backend_cpu_buffer_type())) {
        stages.resize(1);
        fill(ggml_backend_cpu_buffer_type());
    }
    if (dry) {
        return;
    }
    uint8_t *  next = (uint8_t *) ggml_backend_buffer_get_base(staging.get());
    const auto take = [&](const ggml_tensor * t) {
        uint8_t * p = next;
        next += size(t);
        return p;
    };
    host_queries = (float *) take(queries);
    host_pos     = (float *) take(pos);
    host_sinks   = (float *) take(sinks);
    host_scores  = (float *) take(scores);
    for (stage & x : stages) {
        x.host = take(x.keys);
    }
}

void restkv_recall_graph::wait() noexcept {
    for (const ggml_backend_ptr * queue : { &copies, &backend }) {
        if (*queue) {
            ggml_backend_synchronize(queue->get());
        }
    }
    built.clear();
    for (stage & x : stages) {
        x.built.reset();
    }
}

void restkv_recall_graph::upload(ggml_tensor * to, const void * data, size_t bytes) {
    if (ahead()) {
        ggml_backend_tensor_set_async(backend.get(), to, data, 0, bytes);
    } else {
        ggml_backend_tensor_set(to, data, 0, bytes);
    }
}

void restkv_recall_graph::run(ggml_gallocr_t memory, ggml_cgraph * gf) {
    if (shapes.is_new(gf)) {
        ggml_backend_synchronize(backend.get());
    }
    if (!ggml_gallocr_alloc_graph(memory, gf)) {
        throw restkv_error(RESTKV_NO_MEMORY, std::string("not enough memory on ") + ggml_backend_buft_name(buft));
    }
    if (restkv_compute(backend.get(), gf) != GGML_STATUS_SUCCESS) {
        throw restkv_error(RESTKV_NO_MEMORY, std::string(ggml_backend_name(backend.get())) + " failed");
    }
    if (!ahead()) {
        ggml_backend_synchronize(backend.get());
    }
}

void restkv_recall_graph::look_at(const restkv_graph_layer & layer, uint32_t own_first) {
    now.layer     = layer;
    now.own_first = own_first;
}

void restkv_recall_graph::begin(const restkv_recall_view & view, const float * queries, const int32_t * pos,
                                uint32_t n_query, uint32_t n_threads) {
    const size_t rows = (size_t) view.n_head * n_query;
    now.n_query       = n_query;
    now.n             = view.n;
    now.n_own         = view.n_own;
    now.sinks         = view.attn_sinks != nullptr;
    now.layer.softcap = view.softcap;
    if (view.n > most.n_ctx || view.n_own > most.n_own || n_query > most.n_rows) {
        throw restkv_error(RESTKV_INVALID, "a recall of " + std::to_string(view.n) + " positions and " +
                                               std::to_string(view.n_own) + " rows behind them was not planned for");
    }
    buffers.resize(std::max<size_t>(buffers.size(), n_threads));
    // one that is no number looks at all that it sees alike, or at the sink alone
    const bool hides = view.attn_sinks && view.softcap == 0.0f;
    for (size_t r = 0; r < rows; ++r) {
        const float * from  = queries + r * view.d_k;
        float *       to    = host_queries + r * view.d_k;
        const bool    whole = std::all_of(from, from + view.d_k, [](float x) { return std::isfinite(x); });
        std::transform(from, from + view.d_k, to, [&](float x) { return whole ? x : 0.0f; });
        host_pos[r] = whole || !hides ? (float) pos[r] : -1.0f;
    }
    upload(this->queries, host_queries, rows * view.d_k * sizeof(float));
    upload(this->pos, host_pos, rows * sizeof(float));
    if (view.attn_sinks) {
        std::copy_n(view.attn_sinks, view.n_head, host_sinks);
        upload(sinks, host_sinks, view.n_head * sizeof(float));
    }
}

// A panel's keys, head by head. Threads share out its positions.
void restkv_recall_graph::pack(const restkv_recall_view & view, const panel & p, uint8_t * to,
                               const restkv_member & member) {
    const uint32_t piece  = restkv_recall_panel(view.d_k);
    const size_t   head   = ggml_row_size(type, view.d_k);
    const size_t   stride = head * view.n_head_kv;
    for (uint32_t from = member.i * piece; from < p.n; from += member.n * piece) {
        const uint32_t  n    = std::min(piece, p.n - from);
        const uint8_t * rows = view.keys(p.from + from, n, buffers[member.i]);
        for (uint32_t h = 0; h < p.n_heads; ++h) {
            uint8_t *       next = to + ((size_t) h * p.n + from) * head;
            const uint8_t * row  = rows + (p.head + h) * head;
            for (uint32_t j = 0; j < n; ++j) {
                memcpy(next + j * head, row + j * stride, head);
            }
        }
    }
}

void restkv_recall_graph::add_panel(const panel & p, ggml_tensor * keys, ggml_context_ptr & built) {
    const float *  own  = host_pos + (size_t) p.head * now.rows();
    const uint32_t last = (p.own ? now.n : 0) + p.from + p.n - 1;
    now.masked          = std::any_of(own, own + p.n_heads * now.rows(), [&](float x) { return x < (float) last; });
    built               = new_context();
    run(memory_panel.get(), build_panel(built.get(), now, p, keys));
}

// Queue what reads a panel that was copied; behind the last one of some heads, what they come to.
void restkv_recall_graph::multiply(stage & of) {
    if (ahead()) {
        ggml_backend_event_synchronize(of.copied.get());
    }
    add_panel(of.what, of.keys, of.built);
    if (ahead()) {
        ggml_backend_event_record(of.computed.get(), backend.get());
    }
    if (!of.what.last) {
        return;
    }
    panel          p = of.what;
    const uint32_t n = tile_of(now.layer.n_head, now.layer.n_head_kv, now.layer.d_k).n_cells;
    p.own            = true;
    for (p.from = 0; p.from < now.n_own; p.from += n) {
        p.n = std::min(n, now.n_own - p.from);
        built.emplace_back();
        add_panel(p, nullptr, built.back());
    }
    built.push_back(new_context());
    run(memory_scores.get(), build_scores(built.back().get(), now, p.head, p.n_heads));
}

// Panel i is packed. The one before it was copied meanwhile, and is queued; this one is copied next.
void restkv_recall_graph::hand_over(const panel & p, uint32_t i) {
    stage & of = stages[i % stages.size()];
    if (!ahead()) {
        of.what = p;
        ggml_backend_tensor_set(of.keys, of.host, 0, (size_t) p.n_heads * p.n * ggml_row_size(type, now.layer.d_k));
        multiply(of);
        return;
    }
    if (i > 0) {
        multiply(stages[(i - 1) % stages.size()]);
    }
    if (i > 1) {
        ggml_backend_event_synchronize(of.computed.get());
    }
    of.what = p;
    ggml_backend_tensor_set_async(copies.get(), of.keys, of.host, 0,
                                  (size_t) p.n_heads * p.n * ggml_row_size(type, now.layer.d_k));
    ggml_backend_event_record(of.copied.get(), copies.get());
}

// The mean of a group. What is no number counts as nothing.
void restkv_recall_graph::take(const restkv_recall_view & view, float * raw, const restkv_member & member) const {
    const float group = (float) view.group();
    for (uint32_t h = member.i; h < view.n_head_kv; h += member.n) {
        const float * from = host_scores + (size_t) h * view.n;
        float *       to   = raw + (size_t) h * view.n;
        for (uint32_t j = 0; j < view.n; ++j) {
            to[j] = std::isfinite(from[j]) && from[j] > 0.0f ? from[j] / group : 0.0f;
        }
    }
}

void restkv_recall_graph::attend(const restkv_recall_view & view, const float * queries, const int32_t * pos,
                                 uint32_t n_query, float * raw, restkv_member & member) noexcept {
    if (view.n_head_kv == 0) {
        return;  // what looks at a layer has failed
    }
    member.run_first([&] { begin(view, queries, pos, n_query, member.n); });
    // every thread comes to every part, also when one has failed
    const tile t = tile_of(view.n_head, view.n_head_kv, view.d_k);
    uint32_t   i = 0;
    for (uint32_t head = 0; head < view.n_head_kv; head += t.n_heads) {
        for (uint32_t from = 0; from < view.n; from += t.n_cells, ++i) {
            panel p;
            p.head    = head;
            p.n_heads = std::min(t.n_heads, view.n_head_kv - head);
            p.from    = from;
            p.n       = std::min(t.n_cells, view.n - from);
            p.last    = from + p.n == view.n;
            member.run([&] { pack(view, p, stages[i % stages.size()].host, member); });
            member.run_first([&] { hand_over(p, i); });
        }
    }
    member.run_first([&] {
        const size_t bytes = (size_t) view.n_head_kv * view.n * sizeof(float);
        if (ahead()) {
            multiply(stages[(i - 1) % stages.size()]);
            ggml_backend_tensor_get_async(backend.get(), scores, host_scores, 0, bytes);
            ggml_backend_synchronize(backend.get());
        } else {
            ggml_backend_tensor_get(scores, host_scores, 0, bytes);
        }
    });
    if (member.i == 0) {
        wait();  // nothing is left under way, also when a part has failed
    }
    member.run([&] { take(view, raw, member); });
}
