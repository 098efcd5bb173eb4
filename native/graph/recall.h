// The attention of a recall as graphs of ggml, on the device that holds a layer's cells. The queries that speak are picked
// on the host, and cells are chosen there; what lies between is done here:
//
//   keys of the archive   a panel of positions at a time, of as many KV heads as their logits fit, through memory of the host
//                         that the device reads: where it has a queue, a panel is packed and another one copied while
//                         the device multiplies a third
//   logits                of these heads over the whole text, the rows behind it, and a sink
//   scores                softmax, the largest of a head's queries, the sum over a group: a float per KV head and position
//                         comes back
//
// All memory is taken at load, for the whole context. Nothing here knows llama.cpp's cache.

#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "graph/graph.h"
#include "graph/shapes.h"
#include "stages/recall.h"

#include <string>
#include <vector>

class restkv_recall_graph : public restkv_recall_attends {
public:
    struct sizes {
        uint32_t n_ctx;        // most positions of a text
        uint32_t n_own;        // most rows behind it
        uint32_t n_rows;       // most queries that speak, per query head
        size_t   tile_floats;  // logits at a time, but for those of one KV head; 0: the default
    };

    // What a layer takes, as bytes() and host_bytes() after reserve(), allocating nothing. Its tensors need no memory.
    struct needs {
        size_t device;
        size_t host;
    };

    static needs measure(ggml_backend_dev_t device, ggml_type type, const sizes & most,
                         const restkv_graph_layer & layer);

    // type: of the archive's keys. n_threads: of a backend that has threads. Throws std::runtime_error when there is no
    // memory for the inputs.
    restkv_recall_graph(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft, ggml_type type, const sizes & most,
                        const std::vector<restkv_graph_layer> & layers, uint32_t n_threads);
    ~restkv_recall_graph() override;

    const ggml_backend_dev_t device;

    // The first thing that the device cannot do for this layer, or "". Sinks and a soft-cap are asked for as if present.
    std::string missing(const restkv_graph_layer & layer) const;

    // Reserve work memory for the longest text of this layer. Throws std::runtime_error.
    void reserve(const restkv_graph_layer & layer);

    // What attend() is for: a layer, whose rows behind the text are those from own_first on. They are there: nothing
    // that writes them is under way.
    void look_at(const restkv_graph_layer & layer, uint32_t own_first);

    void attend(const restkv_recall_view & view, const float * queries, const int32_t * pos, uint32_t n_query,
                float * raw, restkv_member & member) noexcept override;

    // Whether packing, copying and multiplying overlap.
    bool ahead() const { return stages.size() > 1; }

    ggml_backend_buffer_type_t buffer_type() const { return buft; }

    size_t bytes() const;       // on the device: inputs, panels, logits, scores, work memory
    size_t host_bytes() const;  // on the host: where panels and scores pass through

private:
    // KV heads at a time, and positions of a panel.
    struct tile {
        uint32_t n_heads;
        uint32_t n_cells;
    };

    // A panel: positions [from, from + n) of KV heads [head, head + n_heads), of the archive or of the rows behind.
    struct panel {
        uint32_t head    = 0;
        uint32_t n_heads = 0;
        uint32_t from    = 0;
        uint32_t n       = 0;
        bool     own     = false;
        bool     last    = false;  // of these heads
    };

    // One recall of a layer.
    struct shape {
        restkv_graph_layer layer;
        uint32_t           own_first = 0;
        uint32_t           n_query   = 0;
        uint32_t           n         = 0;  // positions of the text
        uint32_t           n_own     = 0;
        bool               sinks     = false;
        bool               masked    = false;  // of a panel: some query does not see all of it

        uint32_t group() const { return layer.n_head / layer.n_head_kv; }

        uint32_t rows() const { return group() * n_query; }

        size_t n_cols() const { return (size_t) n + n_own + (sinks ? 1 : 0); }
    };

    // A panel on its way.
    struct stage {
        ggml_tensor *          keys;      // of the archive's type, [n_heads][n][d]
        uint8_t *              host;
        ggml_backend_event_ptr copied;    // onto the device
        ggml_backend_event_ptr computed;  // its logits
        ggml_context_ptr       built;
        panel                  what;
    };

    restkv_recall_graph(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft, ggml_type type, const sizes & most,
                        const std::vector<restkv_graph_layer> & layers, uint32_t n_threads, bool dry);

    tile  tile_of(uint32_t n_head, uint32_t n_head_kv, uint32_t d_k) const;
    shape largest(const restkv_graph_layer & layer) const;

    // recall_build.cpp
    ggml_context_ptr new_context() const;
    ggml_cgraph *    build_panel(ggml_context * ctx, const shape & s, const panel & p, ggml_tensor * keys) const;
    ggml_cgraph *    build_scores(ggml_context * ctx, const shape & s, uint32_t head, uint32_t n_heads) const;

    // recall_run.cpp
    void init_stages();
    void init_staging();
    void upload(ggml_tensor * to, const void * data, size_t bytes);
    void run(ggml_gallocr_t memory, ggml_cgraph * gf);
    void begin(const restkv_recall_view & view, const float * queries, const int32_t * pos, uint32_t n_query,
               uint32_t n_threads);
    void pack(const restkv_recall_view & view, const panel & p, uint8_t * to, const restkv_member & member);
    void hand_over(const panel & p, uint32_t i);
    void multiply(stage & of);
    void add_panel(const panel & p, ggml_tensor * keys, ggml_context_ptr & built);
    void take(const restkv_recall_view & view, float * raw, const restkv_member & member) const;
    void wait() noexcept;

    const ggml_backend_buffer_type_t buft;
    const ggml_type                  type;
    const bool                       exact;  // see restkv_multiplies_exactly()
    const sizes                      most;
    const bool                       dry;    // only measures
    uint32_t                         n_nodes = 0;

    ggml_backend_ptr backend;
    ggml_backend_ptr copies;  // a second queue of the device, or null

    ggml_context_ptr        inputs_ctx;
    ggml_backend_buffer_ptr inputs;   // dry: empty
    ggml_tensor *           queries;  // F32 [n_head * n_rows * d_k]
    ggml_tensor *           pos;      // F32 [n_head * n_rows]
    ggml_tensor *           sinks;    // F32 [n_head]
    ggml_tensor *           logits;   // F32 [n_heads][group * n_query][n_cols]
    ggml_tensor *           scores;   // F32 [n_head_kv][n] sums over the group

    ggml_gallocr_ptr memory_panel;
    ggml_gallocr_ptr memory_scores;
    restkv_shapes    shapes;
    size_t           dry_panel  = 0;  // dry: what the two would take
    size_t           dry_scores = 0;

    ggml_backend_buffer_ptr staging;  // on the host
    size_t                  dry_staging = 0;
    std::vector<stage>      stages;   // 2, or 1 where all is waited for
    float *                 host_queries;
    float *                 host_pos;
    float *                 host_sinks;
    float *                 host_scores;

    shape                             now;
    std::vector<ggml_context_ptr>     built;    // graphs that belong to no stage
    std::vector<std::vector<uint8_t>> buffers;  // of a thread, rows of a file
};
