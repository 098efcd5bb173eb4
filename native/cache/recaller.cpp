#include "cache/recaller.h"

#include "cache/fault.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

static ggml_type type_or(int32_t wanted, ggml_type own) {
    return wanted < 0 ? own : (ggml_type) wanted;
}

restkv_recaller::restkv_recaller(restkv_core & core) : core(core) {
    const restkv_archive_params &     p = core.settings.archive.params;
    std::vector<restkv_archive_layer> rows;
    std::vector<ggml_type>            types;
    for (uint32_t l = 0; l < core.layers.size(); ++l) {
        const restkv_layer & layer = core.layers[l];
        rows.push_back({ layer.k->type, layer.v->type, type_or(p.type_k, layer.k->type),
                         type_or(p.type_v, layer.v->type), layer.n_head_kv, layer.d_k, layer.d_v });
        nodes.push_back({ this, l });
        askers.push_back({ -1, std::vector<float>((size_t) layer.n_head * layer.d_k) });
        types.push_back(rows.back().type_k);
    }
    devices.init(core.layers, core.params, types, { p.n_ctx, core.reserve(), p.n_rows, 0 });
    for (uint32_t l = 0; l < core.layers.size(); ++l) {
        const restkv_layer & layer = core.layers[l];
        work.reserve(params(), layer.n_head, layer.n_head_kv, layer.d_k, p.n_ctx, core.reserve(), !devices.of(l));
    }
    init_shared();
    done.place  = p.place;
    done.type_k = rows[0].type_k;
    done.type_v = rows[0].type_v;
    archive     = restkv_archive::make(p.place, core.settings.archive.path, p.n_ctx, std::move(rows));
}

restkv_recall_params restkv_recaller::params() const {
    const restkv_archive_params & p = core.settings.archive.params;
    return { p.n_rows, p.kernel, p.sinks, core.params.window, core.params.budget };
}

// Rows in host memory: where they lie, or a copy of a device's.
static const uint8_t * rows_at(const ggml_tensor * t, uint32_t first, uint32_t n, std::vector<uint8_t> & copy) {
    if (ggml_backend_buffer_is_host(restkv_buffer_of(t))) {
        return (const uint8_t *) t->data + first * t->nb[1];
    }
    copy.resize(n * t->nb[1]);
    ggml_backend_tensor_get(t, copy.data(), first * t->nb[1], copy.size());
    return copy.data();
}

void restkv_recaller::archive_tail(uint32_t n_doc) {
    constexpr uint32_t N_COPY = 4 * restkv_archive::BLOCK;  // rows that are copied from a device at a time

    const uint32_t tail = core.seq.tail_begin();
    if (n_doc <= tail) {
        return;
    }
    if (stale) {
        archive->truncate(0);
        stale = false;
    }
    const llama_pos pos_first = core.pos_of(tail);
    const llama_pos pos_end   = core.pos_of(n_doc - 1) + 1;
    const uint32_t  first     = archive->n_rows();
    if (pos_first > (llama_pos) first || pos_end - pos_first != (llama_pos) (n_doc - tail)) {
        throw restkv_error(RESTKV_GONE, "an archive needs a text that begins at position 0 and has no gaps: clear the "
                                        "cache and read the text again");
    }
    if (pos_end <= (llama_pos) first) {
        return;
    }
    const int64_t        t_begin = ggml_time_us();
    std::vector<uint8_t> k, v;
    for (uint32_t l = 0; l < core.layers.size(); ++l) {
        const restkv_layer & layer = core.layers[l];
        restkv_step("archive");
        for (uint32_t pos = first; pos < (uint32_t) pos_end;) {
            const uint32_t cell = tail + pos - (uint32_t) pos_first;
            const uint32_t n    = std::min(N_COPY, (uint32_t) pos_end - pos);
            archive->append(l, pos, n, rows_at(layer.k, cell, n, k), rows_at(layer.v, cell, n, v));
            pos += n;
        }
    }
    archive->commit((uint32_t) pos_end);
    done.us_write += ggml_time_us() - t_begin;
}

void restkv_recaller::forget_from(llama_pos p0) {
    if (!stale && !held && p0 < (llama_pos) archive->n_rows()) {
        archive->truncate((uint32_t) std::max<llama_pos>(p0, 0));
    }
}

void restkv_recaller::forget_askers() noexcept {
    for (asker & one : askers) {
        one.pos_exact = -1;
    }
}

void restkv_recaller::forget_all() noexcept {
    forget_askers();
    if (held) {
        return;
    }
    try {
        archive->truncate(0);
        stale = false;
    } catch (...) {
        stale = true;
    }
}

restkv_archive_stats restkv_recaller::stats() const {
    restkv_archive_stats s = done;
    s.n_rows               = stale ? 0 : archive->n_rows();
    s.bytes                = archive->bytes();
    s.bytes_host           = archive->bytes_host();
    s.bytes_written        = archive->bytes_written();
    s.bytes_read           = archive->bytes_read();
    s.n_layer              = (uint32_t) core.layers.size();
    s.n_layer_graph        = devices.n_layer_graph();
    snprintf(s.devices, sizeof(s.devices), "%s", devices.names().c_str());
    snprintf(s.reason, sizeof(s.reason), "%s", devices.reason().c_str());
    return s;
}

// The view of a layer whose cells from own_first to own_end hold the rows behind the text; the caller gives the queries.
void restkv_recaller::look_at(uint32_t l, uint32_t n_text, uint32_t own_first, uint32_t own_end) {
    const restkv_layer & layer = core.layers[l];
    if (!layer.captured || layer.has_bias) {
        throw restkv_error(RESTKV_UNSUPPORTED,
                           "layer " + std::to_string(layer.il) + " has an attention of its own that leaves no queries");
    }
    sinks           = layer.read_sinks();
    view.n_head     = layer.n_head;
    view.n_head_kv  = layer.n_head_kv;
    view.d_k        = layer.d_k;
    view.scale      = layer.kq_scale;
    view.softcap    = layer.softcap;
    view.attn_sinks = sinks.empty() ? nullptr : sinks.data();
    view.n          = n_text;
    view.type       = archive->layer(l).type_k;
    view.keys       = [this, l](uint32_t from, uint32_t n, std::vector<uint8_t> & buffer) {
        restkv_step("keys");
        return archive->keys(l, from, n, buffer);
    };
    view.n_own = own_end - own_first;
    if (restkv_recall_graph * graph = devices.of(l)) {
        view.own = nullptr;  // they stay where they are
        graph->look_at(layer.graph_layer(), own_first);
    } else {
        view.own = view.n_own > 0 ? rows_at(layer.k, own_first, view.n_own, behind) : nullptr;
    }
    view.own_type = layer.k->type;
    view.own_row  = layer.k->nb[1];
}
