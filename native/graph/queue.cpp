// The layers of one eviction handed to a device one after the other, and what comes back. While the host selects the
// cells of a layer, the device scores the next one.
//
// A backend runs in order the graphs that it is given, but may copy beside them: Vulkan writes through a queue of its own
// where a device has one. So each layer under way has its own inputs and results, on the device and on the host, and they
// are used again when its event has come. Only work memory is shared.

#include "api/status.h"
#include "graph/build.h"
#include "graph/graph.h"
#include "stages/parallel.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

void restkv_use_threads(ggml_backend_t backend, ggml_backend_dev_t device, uint32_t n_threads) {
    const auto set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads");
    if (set) {
        set(backend, (int) restkv_threads(n_threads, UINT32_MAX));
    }
}

// Two layers may be under way where a device has a queue, and events that say how far it is.
void restkv_graph::init_buffer_sets() {
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(device, &props);
    const auto events = [&](auto & list) {
        list.resize(2);
        for (auto & x : list) {
            x.read.reset(ggml_backend_event_new(device));
        }
        return list[0].read && list[1].read;
    };
    if (!props.caps.async || !events(buffer_sets) || !events(batches)) {
        buffer_sets.resize(1);
        batches.resize(1);
    }
}

// Copies may be left to a device only in memory that it reads itself, where there is such memory: elsewhere a backend may
// keep them for its own next wait, or make the caller wait.
void restkv_graph::init_staging() {
    const ggml_backend_buffer_type_t pinned = ggml_backend_dev_host_buffer_type(device);

    const size_t rows  = most.n_rows;
    const size_t n_pos = kind == RESTKV_GRAPH_MOVES ? 0 : (size_t) n_head_kv * most.n_cells;
    const size_t n_top = hides ? n_head_kv : 0;
    const size_t own   = n_results + n_head + n_pos + n_top;
    const size_t batch = (size_t) n_head_kv * most.n_kept;
    const auto   fill  = [&](ggml_backend_buffer_type_t type) {
        const size_t words = rows * rows + 2 * rows + buffer_sets.size() * (own + batch);
        if (dry) {
            measured.host = words * sizeof(float);
            return true;
        }
        staging.reset(ggml_backend_buft_alloc_buffer(type, words * sizeof(float)));
        if (!staging) {
            throw restkv_error(RESTKV_NO_MEMORY, "not enough memory on the host for the scores of a layer");
        }
        return ggml_backend_buffer_get_type(staging.get()) == type;
    };
    if (!fill(ahead() && pinned ? pinned : ggml_backend_cpu_buffer_type())) {
        buffer_sets.resize(1);
        batches.resize(1);
        fill(ggml_backend_cpu_buffer_type());
    }
    if (dry) {
        return;
    }
    float *    next = (float *) ggml_backend_buffer_get_base(staging.get());
    const auto take = [&](size_t n) {
        float * p = next;
        next += n;
        return p;
    };
    host_slots   = (int32_t *) take(rows);
    host_weights = take(rows);
    host_mask    = take(rows * rows);
    for (auto & x : buffer_sets) {
        x.host_results = take(n_results);
        x.host_sinks   = take(n_head);
        x.host_pos     = take(n_pos);
        x.host_tops    = take(n_top);
    }
    for (auto & x : batches) {
        x.host_from = (int32_t *) take(batch);
    }
}

size_t restkv_graph::host_bytes() const {
    return ggml_backend_buffer_get_size(staging.get());
}

// Without a queue the device may still read, for a graph before this one, what is to be written.
void restkv_graph::upload(ggml_tensor * to, const void * data, size_t bytes) {
    if (ahead()) {
        ggml_backend_tensor_set_async(backend, to, data, 0, bytes);
    } else {
        ggml_backend_synchronize(backend);
        ggml_backend_tensor_set(to, data, 0, bytes);
    }
}

void restkv_graph::wait() {
    if (backend) {
        ggml_backend_synchronize(backend);
    }
    for (batch & x : batches) {
        x.used = false;
    }
    n_begun = n_finished = 0;
}

void restkv_graph::wait_for_shape(ggml_cgraph * gf) {
    if (shapes.is_new(gf)) {
        ggml_backend_synchronize(backend);
    }
}

void restkv_graph::start(const restkv_graph_cells & cells) {
    wait();
    if (!restkv_graph_attends(kind)) {
        return;
    }
    const uint32_t n_tail = cells.n_cells - (uint32_t) cells.n_visible[0];
    std::copy_n(cells.row_slots, cells.n_rows, host_slots);
    upload(slots, host_slots, cells.n_rows * sizeof(int32_t));
    if (cells.weights) {
        std::copy_n(cells.weights, cells.n_rows, host_weights);
        upload(weights, host_weights, cells.n_rows * sizeof(float));
    }
    for (uint32_t i = 0; i < cells.n_rows; ++i) {
        for (uint32_t j = 0; j < n_tail; ++j) {
            host_mask[(size_t) i * n_tail + j] =
                cells.n_visible[0] + (int32_t) j < cells.n_visible[i] ? 0.0f : -INFINITY;
        }
    }
    if (n_tail > 0) {
        upload(mask, host_mask, (size_t) cells.n_rows * n_tail * sizeof(float));
    }
}

void restkv_graph::begin(const restkv_graph_layer & layer, const restkv_graph_cells & cells) {
    const uint32_t n_cols = cells.n_cells + (layer.sinks ? 1 : 0);
    const layout   at     = layout_of(layer, cells);
    buffer_set &   to     = buffer_sets[n_begun % buffer_sets.size()];
    to.built.clear();
    if (layer.sinks) {
        std::copy_n(layer.sinks, layer.n_head, to.host_sinks);
        upload(to.sinks, to.host_sinks, layer.n_head * sizeof(float));
    }
    if (cells.drift_top > 0) {
        const size_t n = (size_t) layer.n_head_kv * cells.n_cells;
        for (size_t i = 0; i < n; ++i) {
            to.host_pos[i] = (float) (cells.pos[i] - cells.pos[i / cells.n_cells * cells.n_cells]);
        }
        upload(to.pos, to.host_pos, n * sizeof(float));
        if (cells.drift_tops) {
            std::copy_n(cells.drift_tops, layer.n_head_kv, to.host_tops);
            upload(to.tops, to.host_tops, layer.n_head_kv * sizeof(float));
        }
    }

    tile t = tile_of(layer, n_cols, cells.n_rows);
    for (const uint32_t step = t.n_heads; t.head < layer.n_head_kv; t.head += step) {
        t.n_heads = std::min(step, layer.n_head_kv - t.head);
        to.built.push_back(new_context());
        const restkv_graph_builder built(*this, to.built.back().get(), layer, cells, to, t);
        wait_for_shape(built.gf);
        run(memory_score.get(), built.gf);
    }

    to.scores        = {};
    to.scores.n_cols = n_cols;
    to.scores.n_past = cells.n_past;
    to.scores.n_rows = cells.n_rows;
    if (kind == RESTKV_GRAPH_BEFORE) {
        to.scores.raw      = to.host_results + at.abar;
        to.scores.others   = to.host_results + at.values;
        to.scores.dominant = to.scores.others + (size_t) layer.n_head * cells.n_rows * layer.d_v;
        to.scores.tops     = to.host_results + at.tops;
    } else if (restkv_graph_attends(kind)) {
        to.scores.abar = to.host_results + at.abar;
    }
    if (kind == RESTKV_GRAPH_OUTPUT) {
        to.scores.distance2 = to.host_results + at.distances;
        to.scores.others    = to.host_results + at.values;
        to.scores.dominant  = to.scores.others + (size_t) layer.n_head * layer.d_v;
    }
    if (at.dots > at.lengths) {
        to.scores.lengths2 = to.host_results + at.lengths;
    }
    if (at.mean > at.dots) {
        to.scores.dots = to.host_results + at.dots;
        to.scores.mean = to.host_results + at.mean;
    }
    to.scores.drift = cells.drift_top > 0 ? to.host_results + at.drift : nullptr;
    to.n_used       = at.total;
    if (ahead()) {
        ggml_backend_tensor_get_async(backend, to.results, to.host_results, 0, at.total * sizeof(float));
        ggml_backend_event_record(to.read.get(), backend);
    }
    n_begun++;
}

restkv_graph_scores restkv_graph::finish() {
    buffer_set & from = buffer_sets[n_finished++ % buffer_sets.size()];
    if (ahead()) {
        ggml_backend_event_synchronize(from.read.get());
    } else {
        ggml_backend_synchronize(backend);
        ggml_backend_tensor_get(from.results, from.host_results, 0, from.n_used * sizeof(float));
    }
    return from.scores;
}

restkv_graph_scores restkv_graph::score(const restkv_graph_layer & layer, const restkv_graph_cells & cells) {
    start(cells);
    begin(layer, cells);
    return finish();
}

// Those that go to smaller rows first. Neither way overwrites a row that the other one still has to read: in each head
// the rows that go up come before the rows that go down, where they are and where they come to.
void restkv_graph::move(const restkv_graph_layer & layer, const int32_t * from, uint32_t n, uint32_t first) {
    move_some(layer, from, n, first, /*up =*/false);
    move_some(layer, from, n, first, /*up =*/true);
}

void restkv_graph::move_some(const restkv_graph_layer & layer, const int32_t * from, uint32_t n, uint32_t first,
                             bool up) {
    const auto moves = [&](uint32_t h, uint32_t i) {
        const int64_t to = (int64_t) first + i, row = from[(size_t) h * n + i];
        return up ? row < to : row > to;
    };
    uint32_t begin = n, end = 0;  // of what moves, in any head
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        for (uint32_t i = 0; i < begin; ++i) {
            begin = moves(h, i) ? i : begin;
        }
        for (uint32_t i = n; i > end; --i) {
            end = moves(h, i - 1) ? i : end;
        }
    }
    if (begin >= end) {
        return;
    }
    batch & x = batches[n_moved++ % batches.size()];
    if (ahead() && x.used) {
        ggml_backend_event_synchronize(x.read.get());
    }
    int32_t * next = x.host_from;
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        for (uint32_t i = begin; i < end; ++i) {
            *next++ = moves(h, i) ? from[(size_t) h * n + i] : (int32_t) (first + i);
        }
    }
    upload(x.from, x.host_from, (next - x.host_from) * sizeof(int32_t));
    // One piece is in work memory at a time, so that this never outgrows what was reserved.
    x.built = new_context();
    run(memory_move.get(), build_moves(x.built.get(), layer, x.from, end - begin, first + begin, up));
    if (ahead()) {
        ggml_backend_event_record(x.read.get(), backend);
        x.used = true;
    }
}
