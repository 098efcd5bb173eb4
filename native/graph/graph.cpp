#include "graph/graph.h"

#include "api/params.h"
#include "graph/build.h"
#include "graph/product.h"

#include <algorithm>
#include <stdexcept>

// 32 MiB: a few such tensors are alive at a time. The rows of 32 heads and 6144 cells are one tile.
static constexpr size_t TILE_FLOATS = 8 * 1024 * 1024;

restkv_graph::restkv_graph(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft, const restkv_params & params,
                           const sizes & most, const std::vector<restkv_graph_layer> & layers) :
    restkv_graph(device, buft, params, most, layers, false) {}

restkv_graph::restkv_graph(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft, const restkv_params & params,
                           const sizes & most, const std::vector<restkv_graph_layer> & layers, bool dry) :
    device(device),
    exact(restkv_graph_kind_of(params) == RESTKV_GRAPH_MOVES || restkv_multiplies_exactly(device, buft)),
    buft(buft),
    params(params),
    kind(restkv_graph_kind_of(params)),
    takes_largest(restkv_graph_takes_largest(params)),
    most{ most.n_cells, most.n_rows, most.n_kept, most.tile_floats > 0 ? most.tile_floats : TILE_FLOATS },
    dry(dry),
    inputs_ctx(ggml_init({ 16 * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true })),
    memory_score(ggml_gallocr_new(buft)),
    memory_move(ggml_gallocr_new(buft)) {
    restkv_graph_layer largest;  // in every size
    const float        sink = 0.0f;
    largest.sinks           = &sink;
    for (const restkv_graph_layer & layer : layers) {
        n_head      = std::max(n_head, layer.n_head);
        n_head_kv   = std::max(n_head_kv, layer.n_head_kv);
        largest.d_k = std::max(largest.d_k, layer.d_k);
        largest.d_v = std::max(largest.d_v, layer.d_v);
        hides       = hides || layer.hidden;
    }
    largest.n_head    = n_head;
    largest.n_head_kv = n_head_kv;
    restkv_graph_cells whole;
    whole.n_cells = whole.n_past = most.n_cells;
    whole.n_rows                 = most.n_rows;
    whole.drift_top              = params.pooling == RESTKV_POOLING_ADAPTIVE ? 1 : 0;
    init_buffer_sets();
    const int64_t  rows = most.n_rows;
    ggml_context * ctx  = inputs_ctx.get();
    slots               = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, rows);
    weights             = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, rows);
    mask                = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, rows * rows);
    n_results           = kind == RESTKV_GRAPH_MOVES ? 1 : layout_of(largest, whole).total;
    for (buffer_set & x : buffer_sets) {
        x.sinks   = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_head);
        x.pos     = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, (int64_t) n_head_kv * most.n_cells);
        x.tops    = hides ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_head_kv) : nullptr;
        x.results = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, (int64_t) n_results);
    }
    for (batch & x : batches) {
        x.from = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, (int64_t) n_head_kv * most.n_kept);
    }
    if (dry) {
        measured.device = ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, buft);
        inputs.reset(ggml_backend_buft_alloc_buffer(buft, 0));
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
            t->buffer = inputs.get();  // so that the allocator of a graph leaves it alone
        }
    } else {
        inputs = restkv_allocate(ctx, buft, "the inputs of an eviction");
    }
    init_staging();
}

restkv_graph::sizes restkv_graph::sizes_of(const restkv_params & params, uint32_t n_cells, uint32_t n_kept) {
    const restkv_graph_kind kind   = restkv_graph_kind_of(params);
    const uint32_t          n_rows = kind == RESTKV_GRAPH_VOTES ? restkv_ring_rows(params) : params.window;
    return { n_cells, restkv_graph_attends(kind) ? n_rows : 1, n_kept, 0 };
}

ggml_tensor * restkv_graph::keep_factors(const float * data, uint32_t d_v, uint32_t n_head) {
    ggml_context_ptr        ctx(ggml_init({ 2 * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
    ggml_tensor *           wo     = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, d_v, d_v, n_head);
    ggml_backend_buffer_ptr buffer = restkv_allocate(ctx.get(), buft, "the factors of W_o");
    ggml_backend_tensor_set(wo, data, 0, ggml_nbytes(wo));
    factors.emplace_back(std::move(ctx), std::move(buffer));
    return wo;
}

ggml_context_ptr restkv_graph::new_context() const {
    constexpr size_t N = restkv_graph_builder::NODES_MAX;
    return ggml_context_ptr(ggml_init({ N * ggml_tensor_overhead() + ggml_graph_overhead_custom(N, false), nullptr,
                                        /*no_alloc =*/true }));
}

// As many KV heads at a time as fit; of a single one that does not fit, as many rows of the window.
restkv_graph::tile restkv_graph::tile_of(const restkv_graph_layer & layer, uint32_t n_cols, uint32_t n_rows) const {
    const size_t row = (size_t) n_cols * (layer.n_head / layer.n_head_kv);
    tile         t   = {};
    n_rows           = std::max(n_rows, 1u);  // none where keys alone are looked at
    t.n_heads        = (uint32_t) std::clamp<size_t>(most.tile_floats / (row * n_rows), 1, layer.n_head_kv);
    t.n_rows         = t.n_heads > 1 ? n_rows : (uint32_t) std::clamp<size_t>(most.tile_floats / row, 1, n_rows);
    return t;
}

restkv_graph::layout restkv_graph::layout_of(const restkv_graph_layer & layer, const restkv_graph_cells & cells) const {
    const bool   with_output  = kind == RESTKV_GRAPH_OUTPUT;
    const bool   with_angles  = kind == RESTKV_GRAPH_ANGLES;
    const bool   with_lengths = with_angles || kind == RESTKV_GRAPH_LENGTHS || kind == RESTKV_GRAPH_ATTENTION_V;
    const size_t n            = layer.n_head;
    const size_t n_outputs    = kind == RESTKV_GRAPH_BEFORE ? n * cells.n_rows : with_output ? n : 0;
    const size_t n_kv         = layer.n_head_kv;
    layout       at           = {};
    at.distances              = kind == RESTKV_GRAPH_BEFORE ? n * cells.n_past :
                                restkv_graph_attends(kind)  ? n * (cells.n_cells + (layer.sinks ? 1 : 0)) :
                                                              0;
    at.values                 = at.distances + (with_output ? n * cells.n_past : 0);
    at.tops                   = at.values + 2 * n_outputs * layer.d_v;
    at.lengths                = at.tops + (kind == RESTKV_GRAPH_BEFORE ? n_outputs * RESTKV_GRAPH_TOP : 0);
    at.dots                   = at.lengths + (with_lengths ? n_kv * cells.n_past : 0);
    at.mean                   = at.dots + (with_angles ? n_kv * cells.n_past : 0);
    at.drift                  = at.mean + (with_angles ? n_kv * layer.d_k : 0);
    at.total                  = at.drift + (cells.drift_top > 0 ? n * cells.n_rows * 4 : 0);
    return at;
}

void restkv_graph::run(ggml_gallocr_t memory, ggml_cgraph * gf) {
    if (!ggml_gallocr_alloc_graph(memory, gf)) {
        throw restkv_error(RESTKV_NO_MEMORY, std::string("not enough memory on ") + ggml_backend_buft_name(buft));
    }
    if (restkv_compute(backend, gf) != GGML_STATUS_SUCCESS) {
        throw restkv_error(RESTKV_NO_MEMORY, std::string(ggml_backend_name(backend)) + " failed");
    }
}

// The largest eviction of a layer, with everything that a device may have to do.
struct worst_case {
    restkv_graph_layer    layer;
    restkv_graph_cells    cells;
    std::vector<int32_t>  n_visible;
    std::vector<float>    ones;
    std::vector<uint32_t> tops;
};

static void fill(worst_case & w, const restkv_graph_layer & layer, const restkv_params & params,
                 const restkv_graph::sizes & most) {
    const bool     drifts = params.pooling == RESTKV_POOLING_ADAPTIVE;
    const uint32_t N      = std::min(most.n_cells, (uint32_t) layer.k->ne[1]);
    w.ones.assign(std::max(layer.n_head, most.n_rows), 1.0f);
    for (uint32_t i = 0; i < most.n_rows; ++i) {
        w.n_visible.push_back((int32_t) (N - most.n_rows + 1 + i));
    }
    w.layer           = layer;
    w.layer.sinks     = w.ones.data();
    w.cells.n_cells   = N;
    w.cells.n_past    = N - most.n_rows;
    w.cells.n_rows    = most.n_rows;
    w.cells.weights   = w.ones.data();
    w.cells.n_visible = w.n_visible.data();
    w.cells.drift_top = drifts ? std::min(most.n_kept, w.cells.n_past) : 0;
    w.tops.assign(layer.n_head_kv, w.cells.drift_top);
    w.cells.drift_tops = layer.hidden ? w.tops.data() : nullptr;
}

// Most cells of a head that survive.
static uint32_t most_kept(const restkv_graph_layer & layer, const restkv_graph::sizes & most) {
    return std::min(most.n_kept, (uint32_t) layer.k->ne[1]);
}

std::string restkv_graph::missing(const restkv_graph_layer & layer) const {
    const auto ask = [&](ggml_cgraph * gf) -> std::string {
        for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
            const ggml_tensor * node = ggml_graph_node(gf, i);
            if (!ggml_backend_dev_supports_op(device, node)) {
                const ggml_tensor * src = node->src[0];
                return std::string(ggml_op_desc(node)) + (src ? std::string(" of ") + ggml_type_name(src->type) : "");
            }
        }
        return "";
    };
    for (const auto & [cache, d] : { std::pair(layer.k, layer.d_k), std::pair(layer.v, layer.d_v) }) {
        if (ggml_row_size(cache->type, d) % sizeof(float) != 0) {
            return std::string("rows of ") + std::to_string(d) + " values of " + ggml_type_name(cache->type) +
                   ", which are no whole words,";
        }
    }
    const ggml_context_ptr moves = new_context();
    std::string lacked = ask(build_moves(moves.get(), layer, batches[0].from, most_kept(layer, most), 0, false));
    if (lacked.empty() && kind != RESTKV_GRAPH_MOVES) {
        worst_case w;
        fill(w, layer, params, most);
        const tile t = tile_of(layer, w.cells.n_cells + 1, most.n_rows);
        if (restkv_graph_builder::nodes(*this, w.layer, w.cells, t) > restkv_graph_builder::NODES_MAX) {
            return "a graph for " + std::to_string(w.cells.n_cells) + " cells and a window of " +
                   std::to_string(most.n_rows);
        }
        const ggml_context_ptr     scoring = new_context();
        const restkv_graph_builder built(*this, scoring.get(), w.layer, w.cells, buffer_sets[0], t);
        lacked = ask(built.gf);
    }
    return lacked;
}

void restkv_graph::reserve(const restkv_graph_layer & layer) {
    const auto take = [&](ggml_gallocr_t memory, ggml_cgraph * gf) {
        if (dry) {
            size_t n = 0;
            ggml_gallocr_reserve_n_size(memory, gf, nullptr, nullptr, &n);
            measured.device += n;
            return true;
        }
        return ggml_gallocr_reserve(memory, gf);
    };
    bool done;
    {
        const ggml_context_ptr ctx = new_context();
        done =
            take(memory_move.get(), build_moves(ctx.get(), layer, batches[0].from, most_kept(layer, most), 0, false));
    }
    if (done && kind != RESTKV_GRAPH_MOVES) {
        worst_case w;
        fill(w, layer, params, most);
        const ggml_context_ptr     ctx = new_context();
        const restkv_graph_builder built(*this, ctx.get(), w.layer, w.cells, buffer_sets[0],
                                         tile_of(layer, w.cells.n_cells + 1, most.n_rows));
        done = take(memory_score.get(), built.gf);
    }
    if (!done) {
        throw restkv_error(RESTKV_NO_MEMORY,
                           std::string("not enough memory on ") + ggml_backend_buft_name(buft) + " for an eviction");
    }
}

restkv_graph::needs restkv_graph::measure(ggml_backend_dev_t device, const restkv_params & params, const sizes & most,
                                          const restkv_graph_layer & layer) {
    restkv_graph graph(device, ggml_backend_dev_buffer_type(device), params, most, { layer }, true);
    if (!graph.missing(layer).empty()) {
        return {};
    }
    graph.reserve(layer);
    return graph.measured;
}

size_t restkv_graph::factor_bytes() const {
    size_t n = 0;
    for (const auto & [ctx, buffer] : factors) {
        n += ggml_backend_buffer_get_size(buffer.get());
    }
    return n;
}

size_t restkv_graph::bytes() const {
    return ggml_backend_buffer_get_size(inputs.get()) + ggml_gallocr_get_buffer_size(memory_score.get(), 0) +
           ggml_gallocr_get_buffer_size(memory_move.get(), 0) + factor_bytes();
}
