// The eviction state of one llama_kv_cache, and the hooks that the patched llama.cpp calls.
//
// A cell of the cache is shared by all KV heads of all layers in llama.cpp's own tables. After an eviction every KV
// head of every layer holds its own set of positions in the same cells, so this class keeps the true positions:
// cells [0, n_table) per layer and head in `table`, cells from n_table on as llama.cpp's table has them.
//
// Used cells are always [0, n) in ascending order of position: eviction compacts, removal is only allowed at the end.
//
// With shares (restkv_arm_shares) layers, or heads, hold different numbers of cells. The numbering stays common to all:
// an eviction leaves each its last cells before `n_row_max`, and what lies before those is hidden from it. A layer with a
// small budget has no rows for the first cells at all. A new text starts at `start`, so that every layer has its cells.

#pragma once

#include "graph/graph.h"
#include "params.h"
#include "shares.h"
#include "stages.h"
#include "wo.h"

#include "ggml-cpp.h"
#include "llama.h"

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

class llama_io_read_i;
class llama_io_write_i;
class llama_kv_cache;
class restkv_ring_input;
class restkv_shared_input;
struct llama_context;
struct llama_memory_context_i;
struct llama_memory_i;
struct llama_ubatch;
struct llm_graph_context;
struct layer_data;
struct layer_kept;
struct layer_turn;

// What the next context of this thread gets; see restkv_arm().
struct restkv_armed {
    restkv_params params;
    std::string   path_model;
    std::string   path_cache;
    restkv_shares shares;
};

extern thread_local std::unique_ptr<restkv_armed> restkv_pending;
extern thread_local const class restkv_cache *    restkv_claimed;  // what took them, until its memory is admitted

class restkv_cache {
public:
    ~restkv_cache();

    // ---- hooks: construction -------------------------------------------------------------------

    // Take the pending settings, if this cache is one that evicts: sets kv.restkv and the number of cells. Throws
    // std::runtime_error when the cache cannot evict.
    static void claim(llama_kv_cache & kv, uint32_t & kv_size);

    // After the memory of a context is made. Throws std::runtime_error when settings are left over, or when the cache that
    // took them is a part of something that would not notice an eviction.
    static void admit(const llama_memory_i * memory);

    // The cache of a memory that evicts, or null.
    static restkv_cache * of(const llama_memory_i & memory);

    // After the layers exist: ring, tables and matrices. Throws std::runtime_error.
    void init();

    // Why a model cannot be evicted, or "".
    static std::string refusal(const llama_model & model);

    // ---- hooks: graph --------------------------------------------------------------------------

    // Store the queries of the last positions of this ubatch in the layer's ring. No-op when `cache` is null.
    static void capture(const llm_graph_context & graph, restkv_cache * cache, ggml_tensor * q, ggml_tensor * kq_b,
                        ggml_tensor * sinks, float kq_scale, int il);

    // The rows that a layer stores a ubatch in, from the numbers of its cells.
    static ggml_tensor * rows_of(const llm_graph_context & graph, restkv_cache * cache, ggml_tensor * idxs, int il);

    // build_attn_mha on the cells that the layer, or each of its heads, holds.
    static ggml_tensor * attend(const llm_graph_context & graph, restkv_cache * cache, ggml_tensor * q, ggml_tensor * k,
                                ggml_tensor * v, ggml_tensor * kq_b, ggml_tensor * kq_mask, ggml_tensor * sinks,
                                ggml_tensor * v_mla, float kq_scale, int il);

    // ---- hooks: layers and heads with budgets of their own (shared.cpp) -------------------------

    bool     is_shared() const { return armed.shares.kind != RESTKV_ALLOCATION_UNIFORM; }
    uint32_t n_rows(int il) const;                      // rows that a layer has
    uint32_t seen_rows(int il, uint32_t & n_kv) const;  // first row that it sees; takes what is hidden off n_kv
    void     shared_write(llama_io_write_i & io) const;
    void     shared_read(llama_io_read_i & io);

    // ---- hooks: memory -------------------------------------------------------------------------

    void clear();
    bool seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1);  // [p0, p1); false: refused, nothing has changed
    void seq_keep(llama_seq_id seq_id);
    bool refuse(const char * operation);                           // always true; leaves a message

    // Whether all parts of a memory can be cut: asked before the first one changes. Any numbers as seq_rm of llama.h.
    static bool can_rm(const llama_memory_i & memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1);

    // Whether the end [p0, p1) of a sequence can be cut off in sliding-window layers: what p0 sees must still be there.
    // Asked whether the layers beside them evict or not; what is no cut at the end is not judged.
    static bool can_cut(const llama_kv_cache & swa, llama_seq_id seq_id, llama_pos p0, llama_pos p1);

    bool find_slot(const llama_ubatch & ubatch, std::vector<uint32_t> & idxs) const;

    bool                                    can_evict() const;
    std::unique_ptr<llama_memory_context_i> init_evict(llama_context * lctx);

    void state_write(llama_io_write_i & io) const;
    void state_read(llama_io_read_i & io);

    // ---- the API -------------------------------------------------------------------------------

    restkv_status evict(llama_context * lctx, uint32_t n_guide);

    restkv_stats                     stats() const;
    const std::deque<restkv_event> & events() const { return event_log; }
    int32_t                          kept(uint32_t layer, uint32_t head_kv, int32_t * out, uint32_t n_max) const;

    // Add what this cache takes to the rows of its devices.
    void add_memory(std::map<std::string, restkv_memory> & by_device) const;

private:
    friend class restkv_ring_input;
    friend class restkv_shared_input;

    static constexpr size_t EVENTS_MAX = 256;

    struct layer_state {
        uint32_t il;
        uint32_t n_head;
        uint32_t n_head_kv;
        uint32_t d_k;
        uint32_t d_v;

        ggml_tensor * k;
        ggml_tensor * v;
        ggml_tensor * ring;  // [n_head * d_k, n_ring + 1], the last row takes what nobody needs

        // recorded when the graph is built
        float         kq_scale = 0.0f;
        ggml_tensor * sinks    = nullptr;
        bool          captured = false;
        bool          has_bias = false;

        uint8_t        stages    = RESTKV_STAGES_FUSED;  // how this layer is evicted
        restkv_graph * graph     = nullptr;
        ggml_tensor *  wo_device = nullptr;              // [d_v, d_v, n_head] factors for the graph, or null

        std::vector<float>   wo;                         // [n_head][d_v][d_v] upper factors, or empty
        std::vector<int32_t> table;                      // [n_head_kv][budget] positions
        std::vector<float>   sums;       // [n_head_kv][capacity] attention of all queries so far, or empty (method h2o)

        uint32_t              budget;    // most cells of a head that survive
        uint32_t              n_window;  // of them, the last positions
        uint32_t              first;     // cells before this one have no rows here
        uint32_t              hidden;    // cells before this one are seen by no head
        std::vector<uint32_t> held;      // [n_head_kv] cells left by the last eviction
        ggml_tensor *         mask;      // ada: F16 [cells, n_head_kv], -inf where a head holds nothing; or null
    };

    struct window {
        uint32_t             n_rows = 0;
        std::vector<int32_t> pos;    // [n_rows]
        std::vector<int32_t> slots;  // [n_rows] row of the ring
    };

    explicit restkv_cache(llama_kv_cache & kv, restkv_armed armed);

    bool               may_cut(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;
    uint32_t           n_used() const;
    uint32_t           n_end() const;       // number of the cell that the next token gets
    uint32_t           tail_begin() const;  // first cell after the last eviction
    uint32_t           held(const layer_state & layer, uint32_t head_kv) const;
    void               count_cells(restkv_stats & s) const;
    uint32_t           budget_of(uint32_t il) const;
    void               check_shares(const llama_kv_cache & kv) const;
    void               init_shares();
    void               show_cells();                               // after `held` or `n_table` has changed
    void               write_masks();                              // what show_cells() left; nothing may be under way
    std::vector<float> sinks_of(const layer_state & layer) const;  // [n_head], or empty
    llama_pos          pos_of(uint32_t cell) const;                // as llama.cpp's table has it
    window             rows(llama_pos pos_next, uint32_t n_max) const;
    void               check_layers() const;
    uint32_t           n_past(const layer_state & layer, uint32_t head_kv, const struct evict_plan & plan) const;
    void               fill_pos(const layer_state & layer, uint32_t head_kv, const struct evict_plan & plan,
                                std::vector<int32_t> & pos) const;
    // One KV head with its queries in scratch.queries; the caller sets n_cells, n_past and pos.
    restkv_view        head_view(const layer_state & layer, uint32_t head_kv, const struct layer_data & data,
                                 const std::vector<int32_t> & row_pos, const std::vector<int32_t> & row_slots,
                                 restkv_scratch & scratch) const;
    uint32_t           score_task(const layer_state & layer, uint32_t head_kv, const struct evict_plan & plan,
                                  const struct layer_data & data, restkv_scratch & scratch, bool selects = true) const;
    void               move_task(const layer_state & layer, uint32_t head_kv, const struct evict_plan & plan,
                                 const struct layer_data & data, restkv_scratch & scratch, uint32_t n_keep,
                                 struct layer_kept & kept) const;
    void evict_heads(const layer_state & layer, const struct evict_plan & plan, const struct layer_data & data,
                     std::vector<restkv_scratch> & scratch, uint32_t n_threads, struct layer_kept & kept) const;
    void share_heads(const layer_state & layer, const struct evict_plan & plan, std::vector<restkv_scratch> & scratch,
                     uint32_t n_threads, const std::function<uint32_t(uint32_t, restkv_scratch &)> & choose,
                     const std::function<void(uint32_t, uint32_t, restkv_scratch &)> & keep) const;
    uint32_t choose_one_set(const layer_state & layer, uint32_t n_past, restkv_scratch & scratch,
                            const std::function<void(uint32_t)> & score_of) const;
    void     move_votes(const struct layer_data & data, uint32_t head_kv, const int32_t * kept, uint32_t n_kept,
                        uint32_t n_end) const;
    void     evict_layer_task(const layer_state & layer, const struct evict_plan & plan, const struct layer_data & data,
                              restkv_scratch & scratch, struct layer_kept & kept) const;
    void     evict_cells(const struct evict_plan & plan, restkv_event & event);
    restkv_status give_up(llama_memory_i & memory, bool moved) noexcept;
    restkv_status lose(llama_memory_i & memory, const char * why, const char * when) noexcept;
    restkv_status say_lost() const noexcept;
    restkv_status say_full(restkv_status status) const;  // what a batch must fit; gives the status back
    void          drop_cells(llama_pos pos_next);
    void          init_ring();
    // Method h2o: the queries in the ring vote, or those that positions [n] would overwrite. Nothing may be under way in
    // observe(), which throws before the first vote is counted, and leaves `votes_lost` after it.
    void          observe(ggml_backend_sched_t sched);
    void          observe_before(ggml_backend_sched_t sched, const llama_pos * pos, uint32_t n) noexcept;
    void     vote_on_host(const std::vector<uint32_t> & members, uint32_t n_cells, const std::vector<int32_t> & row_pos,
                          const std::vector<int32_t> & row_slots);
    void     forget_from(llama_pos p0);  // queries and votes of what is cut
    void     init_wo();
    uint32_t n_rot() const;              // values that are rotated together, or 0

    // graph/evict.cpp
    void               init_graphs();
    std::string        init_graph(ggml_backend_buffer_type_t buft, const std::vector<uint32_t> & members);
    restkv_graph_layer graph_layer(const layer_state & layer) const;
    void               bind_graphs(ggml_backend_sched_t sched);
    std::string        graph_devices() const;
    size_t             graph_bytes() const;

    // graph/votes.cpp
    void vote_as_graphs(const std::vector<uint32_t> & members, uint32_t n_cells, const std::vector<int32_t> & row_pos,
                        const std::vector<int32_t> & row_slots);

    // graph/pipeline.cpp
    void     evict_as_graphs(const std::vector<uint32_t> & members, const struct evict_plan & plan,
                             const std::vector<layer_data> & data, std::vector<restkv_scratch> & scratch,
                             std::vector<layer_kept> & out, restkv_event & event) const;
    void     start_turn(const layer_state & layer, const struct evict_plan & plan, layer_turn & turn) const;
    uint32_t choose_task(const layer_state & layer, uint32_t head_kv, const struct evict_plan & plan,
                         const layer_data & data, const layer_turn & turn, const restkv_graph_scores & scores,
                         restkv_scratch & scratch) const;
    void keep_task(const layer_state & layer, uint32_t head_kv, const struct evict_plan & plan, const layer_data & data,
                   const layer_turn & turn, uint32_t n_keep, restkv_scratch & scratch, struct layer_kept & out) const;
    void queue_moves(const layer_state & layer, const struct layer_kept & out) const;

    llama_kv_cache &             kv;
    const restkv_armed           armed;
    const restkv_params &        params;
    const struct restkv_method * method;

    std::vector<layer_state> layers;

    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> buffers;

    std::vector<ggml_backend_ptr>              graph_backends;  // those that only evictions use
    std::vector<std::unique_ptr<restkv_graph>> graphs;          // one per buffer type
    std::string                                graph_reason;    // why a layer that should be a graph is none

    std::vector<llama_pos> ring_pos;                            // [n_ring] position whose query a row holds, or -1

    uint32_t n_row_max = 0;         // most cells that survive an eviction: the largest budget of a layer or head
    uint32_t start     = 0;         // first cell of a new text
    uint64_t epoch     = 0;         // changes with what is hidden: graphs are built anew

    std::vector<ggml_fp16_t> mask;  // of one layer
    bool                     masks_due = false;  // the layers' masks are not what the tables say

    uint32_t  n_table   = 0;                     // 0, or n_row_max: the cells before it are those of the tables
    llama_pos pos_exact = 0;                     // position after the last eviction
    uint32_t  cursor    = 0;                     // where the next eviction goes on (restkv_method::advance)
    bool      lost      = false;  // an eviction failed on its way: nothing is stored until the cache is cleared

    // method h2o
    char      votes_lost[RESTKV_REASON_MAX] = "";  // why, or ""
    llama_pos pos_seen                      = 0;   // queries before it have voted
    int64_t   us_observe                    = 0;   // since the last eviction
    uint32_t  n_voted                       = 0;   // likewise

    uint64_t                 n_evictions   = 0;
    uint64_t                 n_evicted     = 0;
    size_t                   bytes_scratch = 0;
    std::deque<restkv_event> event_log;
};

// The cache of a context that evicts; null with a message when it has none.
restkv_cache * restkv_find_cache(llama_context * ctx);
