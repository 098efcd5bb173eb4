// A cache that evicts, but for what llama.cpp calls (hooks.h): its settings, its layers, the text in it, and the devices
// that run its evictions. Evictions, votes and saved states work on this.

#pragma once

#include "cache/devices.h"
#include "cache/layer.h"
#include "cache/sequence.h"
#include "cache/settings.h"
#include "methods/methods.h"

#include "ggml-cpp.h"
#include "llama-kv-cells.h"

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

class restkv_recaller;

struct llama_context;
struct llama_hparams;
struct llama_model;

struct restkv_core {
    restkv_core(restkv_settings armed, const llama_hparams & hparams);
    ~restkv_core();

    const restkv_settings settings;
    const restkv_params & params;
    const restkv_method & method;

    uint32_t              n_row_max;   // most cells that survive an eviction: the largest budget of a layer or head
    std::vector<uint32_t> budgets;     // by layer of the model

    std::vector<restkv_layer> layers;  // those that evict
    restkv_sequence           seq;
    restkv_devices            devices;
    const llama_kv_cells *    cells = nullptr;                                  // llama.cpp's own table

    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> buffers;  // rings and masks

    uint64_t                 epoch     = 0;           // changes with what is hidden: graphs are built anew
    bool                     masks_due = false;       // the layers' masks are not what the tables say
    std::vector<ggml_fp16_t> mask;                    // of one layer

    std::unique_ptr<restkv_recaller> recaller;        // of a cache with an archive, or null
    llama_context *                  lctx = nullptr;  // that decoded last; its memory this is

    size_t                   bytes_scratch = 0;
    std::deque<restkv_event> events;  // at most EVENTS_MAX

    static constexpr size_t EVENTS_MAX = 256;

    uint32_t reserve() const { return params.capacity - params.budget; }

    uint32_t n_cells() const { return n_row_max + reserve(); }  // of llama.cpp's table

    uint32_t n_used() const { return cells->get_used(); }

    uint32_t n_end() const;  // number of the cell that the next token gets

    llama_pos pos_of(uint32_t cell) const { return cells->pos_get(cell); }

    restkv_layer * find_layer(int il);

    void clear();  // the text is gone

    // ---- layers and heads with budgets of their own (allocation.cpp) ----------------------------

    bool is_shared() const { return settings.shares.kind != RESTKV_ALLOCATION_UNIFORM; }

    void     check_shares(const llama_model & model) const;  // throws restkv_error
    void     init_shares();                                  // after the layers are there
    void     show_cells();                                   // after `held` or `n_table` has changed
    void     write_masks();                                  // what show_cells() left; nothing may be under way
    uint32_t seen_rows(int il, uint32_t & n_kv) const;       // first row that it sees; takes what is hidden off n_kv

    // ---- facts (facts.cpp) ----------------------------------------------------------------------

    restkv_stats stats() const;
    int32_t      kept(uint32_t il, uint32_t head_kv, int32_t * out, uint32_t n_max) const;
    void         add_memory(std::map<std::string, restkv_memory> & by_device) const;
};

// The device that memory of this type counts as.
std::string restkv_owner_of(ggml_backend_buffer_type_t buft);
