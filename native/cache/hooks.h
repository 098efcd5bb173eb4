// What the patched llama.cpp calls: a KV cache that evicts. It is made in place of an ordinary one (restkv_new_cache), so
// whatever llama.cpp asks of a cache comes here by virtual functions; a bump that changes one of them does not compile.
// A model without pending settings (restkv_arm) gets llama.cpp's own cache, and runs as stock.

#pragma once

#include "cache/core.h"

#include "llama-kv-cache.h"

#include <memory>
#include <string>

struct llm_graph_context;
class llama_kv_cache_iswa;

// As the constructor of llama_kv_cache: a cache that evicts when settings are pending and this one can take them, else
// llama.cpp's own. Throws std::runtime_error when the cache cannot evict.
llama_kv_cache * restkv_new_cache(const llama_model & model, const llama_hparams & hparams, ggml_type type_k,
                                  ggml_type type_v, bool v_trans, bool offload, bool unified, uint32_t kv_size,
                                  uint32_t n_seq_max, uint32_t n_pad, uint32_t n_swa, llama_swa_type swa_type,
                                  llama_memory_t mem_other, const llama_kv_cache::layer_filter_cb & filter,
                                  const llama_kv_cache::layer_reuse_cb & reuse,
                                  const llama_kv_cache::layer_share_cb & share, const char * name_tag = "");

// Rows of layer `il` in the cache that is being made on this thread; kv_size in an ordinary one.
uint32_t restkv_layer_rows(int il, uint32_t kv_size);

class restkv_cache final : public llama_kv_cache {
public:
    restkv_cache(std::unique_ptr<restkv_core> core, const llama_model & model, const llama_hparams & hparams,
                 ggml_type type_k, ggml_type type_v, bool offload, bool unified, uint32_t n_pad,
                 const layer_filter_cb & filter, const layer_reuse_cb & reuse, const layer_share_cb & share,
                 const char * name_tag);
    ~restkv_cache();

    // Why a model cannot be evicted, or "".
    static std::string refusal(const llama_model & model);

    // ---- the memory around it (memory.cpp) ------------------------------------------------------

    // After the memory of a context is made. Throws std::runtime_error when settings are left over, or when the cache that
    // took them is a part of something that would not notice an eviction.
    static void admit(const llama_memory_i * memory);

    // The cache of a memory that evicts, or null.
    static restkv_cache * of(const llama_memory_i & memory);

    // Whether all parts of a memory can be cut: asked before the first one changes. Any numbers as seq_rm of llama.h.
    static bool can_rm(const llama_memory_i & memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1);

    // Whether the end [p0, p1) of a sequence can be cut off in sliding-window layers: what p0 sees must still be there.
    // Asked whether the layers beside them evict or not; what is no cut at the end is not judged.
    static bool can_cut(const llama_kv_cache & swa, llama_seq_id seq_id, llama_pos p0, llama_pos p1);

    // ---- graphs (ring.cpp, allocation.cpp) ------------------------------------------------------

    // The cache behind a context of llama.cpp that evicts, or null.
    static restkv_cache * of(const llama_kv_cache_context * context);

    // The rows that a layer stores a ubatch in, from the numbers of its cells.
    static ggml_tensor * rows_of(const llm_graph_context & graph, const llama_kv_cache_context * context,
                                 ggml_tensor * idxs, int il);

    // build_attn_mha on the cells that the layer, or each of its heads, holds. The queries of the last positions are
    // stored in the layer's ring.
    static ggml_tensor * attend(const llm_graph_context & graph, const llama_kv_cache_context * context,
                                ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * kq_b,
                                ggml_tensor * kq_mask, ggml_tensor * sinks, ggml_tensor * v_mla, float kq_scale,
                                int il);

    // ---- llama_memory_i -------------------------------------------------------------------------

    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    bool get_can_shift() const override { return false; }  // heads hold different positions in the same cell

    void clear(bool data) override;

    // False: refused, nothing has changed.
    bool seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) override;
    void seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;
    void seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) override;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const override;
    void state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) override;

    // ---- llama_kv_cache -------------------------------------------------------------------------

    ggml_tensor * get_k(ggml_context * ctx, int32_t il, uint32_t n_kv, const slot_info & sinfo) const override;
    ggml_tensor * get_v(ggml_context * ctx, int32_t il, uint32_t n_kv, const slot_info & sinfo) const override;

    slot_info find_slot(const llama_ubatch & ubatch, bool cont) const override;

    // ---- the API --------------------------------------------------------------------------------

    // Evict down to the budget, scored by the last queries; the last n_guide tokens are dropped (evict.cpp).
    restkv_status evict(llama_context * lctx, uint32_t n_guide);

    // Choose the cells again among all that was read; the last n_guide tokens ask, and are dropped (evict.cpp).
    restkv_status recall(llama_context * lctx, uint32_t n_guide);

    // Null without an archive.
    restkv_recaller * recaller() { return core->recaller.get(); }

    const restkv_core & facts() const { return *core; }

private:
    void     check_layers() const;
    void     init_layers();
    void     init_wo();
    uint32_t n_rot() const;  // values that are rotated together, or 0

    bool may_cut(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;
    bool cut(llama_pos p0);
    // The end of the text when it is evicted or recalled.
    struct text_end {
        uint32_t              n        = 0;        // number of the last cell in use, guide included, plus 1
        uint32_t              n_doc    = 0;        // likewise without the guide
        llama_pos             pos_next = 0;        // position behind it, without the guide
        llama_kv_cache_iswa * iswa     = nullptr;  // whose sliding windows have seen the guide, or null
    };

    restkv_status look_at_text(llama_context * lctx, uint32_t n_guide, text_end & out) const;
    restkv_status archive_text(uint32_t n_doc) const;
    void          settle(const text_end & end);
    void          log(restkv_event & event, const text_end & end, uint32_t n_guide, int64_t t_start);
    void          set_cells(llama_pos pos_next);
    void          set_tail(llama_pos pos, uint32_t n);
    restkv_status give_up(llama_memory_i & memory, bool moved) noexcept;
    restkv_status lose(llama_memory_i & memory, const char * why, const char * when) noexcept;
    restkv_status say_lost() const noexcept;

    std::unique_ptr<restkv_core> core;

    static thread_local const restkv_cache * claimed;  // what took the settings, until its memory is admitted
};
