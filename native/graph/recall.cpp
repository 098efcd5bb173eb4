#include "graph/recall.h"

#include "api/params.h"
#include "graph/product.h"

#include <algorithm>
#include <climits>
#include <stdexcept>

static constexpr size_t TILE_FLOATS = restkv_recall_work::LOGITS_MAX / sizeof(float);

// A panel's keys, and its logits, are at most this part of a tile: a few of them are alive at a time.
static constexpr size_t PANELS = 4;

restkv_recall_graph::restkv_recall_graph(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft, ggml_type type,
                                         const sizes & most, const std::vector<restkv_graph_layer> & layers,
                                         uint32_t n_threads) :
    restkv_recall_graph(device, buft, type, most, layers, n_threads, false) {}

restkv_recall_graph::restkv_recall_graph(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft, ggml_type type,
                                         const sizes & most, const std::vector<restkv_graph_layer> & layers,
                                         uint32_t n_threads, bool dry) :
    device(device),
    buft(buft),
    type(type),
    exact(restkv_multiplies_exactly(device, buft)),
    most{ most.n_ctx, most.n_own, most.n_rows, most.tile_floats > 0 ? most.tile_floats : TILE_FLOATS },
    dry(dry),
    inputs_ctx(ggml_init({ 16 * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true })),
    memory_panel(ggml_gallocr_new(buft)),
    memory_scores(ggml_gallocr_new(buft)) {
    int64_t n_query = 1, n_pos = 1, n_head = 1, n_logits = 1, n_keys = 1, n_scores = 1;
    for (const restkv_graph_layer & layer : layers) {
        const tile    t    = tile_of(layer.n_head, layer.n_head_kv, layer.d_k);
        const shape   s    = largest(layer);
        const int64_t rows = (int64_t) layer.n_head * most.n_rows;
        n_query            = std::max(n_query, rows * layer.d_k);
        n_pos              = std::max(n_pos, rows);
        n_head             = std::max(n_head, (int64_t) layer.n_head);
        n_logits           = std::max(n_logits, (int64_t) (t.n_heads * s.rows() * s.n_cols()));
        n_keys             = std::max(n_keys, (int64_t) t.n_heads * t.n_cells * layer.d_k);
        n_scores           = std::max(n_scores, (int64_t) layer.n_head_kv * most.n_ctx);
        n_nodes            = std::max(n_nodes, 64 + 2 * s.group());
    }
    init_stages();
    ggml_context * ctx = inputs_ctx.get();
    queries            = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_query);
    pos                = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_pos);
    sinks              = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_head);
    logits             = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_logits);
    scores             = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_scores);
    for (stage & x : stages) {
        x.keys = ggml_new_tensor_1d(ctx, type, n_keys);
    }
    if (dry) {
        inputs.reset(ggml_backend_buft_alloc_buffer(buft, 0));
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
            t->buffer = inputs.get();  // so that the allocator of a graph leaves it alone
        }
        init_staging();
        return;
    }
    inputs = restkv_allocate(ctx, buft, "the inputs of a recall");
    init_staging();
    backend.reset(ggml_backend_dev_init(device, nullptr));
    copies.reset(ahead() ? ggml_backend_dev_init(device, nullptr) : nullptr);
    if (!backend || (ahead() && !copies)) {
        throw restkv_error(RESTKV_NO_MEMORY,
                           std::string(ggml_backend_dev_name(device)) + " has no room for another backend");
    }
    restkv_use_threads(backend.get(), device, n_threads);
}

restkv_recall_graph::~restkv_recall_graph() {
    wait();
}

// The same for every length of a text: then work memory for the longest one is enough for all.
restkv_recall_graph::tile restkv_recall_graph::tile_of(uint32_t n_head, uint32_t n_head_kv, uint32_t d_k) const {
    constexpr size_t BLOCK = 64;  // of the archive

    const size_t rows = (size_t) (n_head / n_head_kv) * most.n_rows;
    const size_t one  = rows * ((size_t) most.n_ctx + most.n_own + 1);
    tile         t    = {};
    t.n_heads         = (uint32_t) std::clamp<size_t>(most.tile_floats / one, 1, n_head_kv);
    const size_t n    = most.tile_floats / PANELS / (std::max<size_t>(rows, d_k) * t.n_heads) / BLOCK * BLOCK;
    const size_t all  = (std::max<size_t>(most.n_ctx, most.n_own) + BLOCK - 1) / BLOCK * BLOCK;
    t.n_cells         = (uint32_t) std::clamp<size_t>(n, BLOCK, all);
    return t;
}

restkv_recall_graph::shape restkv_recall_graph::largest(const restkv_graph_layer & layer) const {
    shape s;
    s.layer   = layer;
    s.n_query = most.n_rows;
    s.n       = most.n_ctx;
    s.n_own   = most.n_own;
    s.sinks   = true;
    s.masked  = true;
    return s;
}

std::string restkv_recall_graph::missing(const restkv_graph_layer & layer) const {
    const tile  t = tile_of(layer.n_head, layer.n_head_kv, layer.d_k);
    shape       s = largest(layer);
    std::string lacked;
    const auto  ask = [&](ggml_cgraph * gf) {
        for (int i = 0; i < ggml_graph_n_nodes(gf) && lacked.empty(); ++i) {
            const ggml_tensor * node = ggml_graph_node(gf, i);
            if (!ggml_backend_dev_supports_op(device, node)) {
                const ggml_tensor * src = node->src[0];
                lacked = std::string(ggml_op_desc(node)) + (src ? std::string(" of ") + ggml_type_name(src->type) : "");
            }
        }
    };
    if (ggml_row_size(layer.k->type, layer.d_k) % sizeof(float) != 0) {
        return "rows of " + std::to_string(layer.d_k) + " values of " + ggml_type_name(layer.k->type) +
               ", which are no whole words,";
    }
    if (t.n_heads * s.rows() * s.n_cols() > INT_MAX) {
        return "a graph for " + std::to_string(most.n_ctx) + " positions and " + std::to_string(s.rows()) + " queries";
    }
    s.layer.softcap = s.layer.softcap > 0.0f ? s.layer.softcap : 1.0f;
    panel p;
    p.n_heads = t.n_heads;
    for (const bool own : { false, true }) {
        p.own                      = own;
        p.n                        = std::min(t.n_cells, own ? most.n_own : most.n_ctx);
        const ggml_context_ptr ctx = new_context();
        if (p.n > 0) {
            ask(build_panel(ctx.get(), s, p, stages[0].keys));
        }
    }
    const ggml_context_ptr ctx = new_context();
    ask(build_scores(ctx.get(), s, 0, t.n_heads));
    return lacked;
}

void restkv_recall_graph::reserve(const restkv_graph_layer & layer) {
    const auto take = [&](ggml_gallocr_t memory, ggml_cgraph * gf, size_t & measured) {
        if (dry) {
            size_t n = 0;
            ggml_gallocr_reserve_n_size(memory, gf, nullptr, nullptr, &n);
            measured = std::max(measured, n);
        } else if (!ggml_gallocr_reserve(memory, gf)) {
            throw restkv_error(RESTKV_NO_MEMORY,
                               std::string("not enough memory on ") + ggml_backend_buft_name(buft) + " for a recall");
        }
    };
    const tile t = tile_of(layer.n_head, layer.n_head_kv, layer.d_k);
    shape      s = largest(layer);
    panel      p;
    p.n_heads = t.n_heads;
    for (const bool own : { false, true }) {
        p.own = own;
        p.n   = std::min(t.n_cells, own ? most.n_own : most.n_ctx);
        for (const bool masked : { true, false }) {
            s.masked                   = masked;
            const ggml_context_ptr ctx = new_context();
            if (p.n > 0) {
                take(memory_panel.get(), build_panel(ctx.get(), s, p, stages[0].keys), dry_panel);
            }
        }
    }
    const ggml_context_ptr ctx = new_context();
    take(memory_scores.get(), build_scores(ctx.get(), s, 0, t.n_heads), dry_scores);
}

restkv_recall_graph::needs restkv_recall_graph::measure(ggml_backend_dev_t device, ggml_type type, const sizes & most,
                                                        const restkv_graph_layer & layer) {
    restkv_recall_graph graph(device, ggml_backend_dev_buffer_type(device), type, most, { layer }, 1, true);
    if (!graph.missing(layer).empty()) {
        return {};
    }
    graph.reserve(layer);
    return { graph.bytes(), graph.host_bytes() };
}

size_t restkv_recall_graph::bytes() const {
    if (dry) {
        return ggml_backend_alloc_ctx_tensors_from_buft_size(inputs_ctx.get(), buft) + dry_panel + dry_scores;
    }
    return ggml_backend_buffer_get_size(inputs.get()) + ggml_gallocr_get_buffer_size(memory_panel.get(), 0) +
           ggml_gallocr_get_buffer_size(memory_scores.get(), 0);
}

size_t restkv_recall_graph::host_bytes() const {
    return dry ? dry_staging : ggml_backend_buffer_get_size(staging.get());
}
