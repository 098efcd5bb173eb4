// The archive of a cache, and recalls from it: which rows the cells of a layer hold, chosen again among all that was read.
//
//   recaller.cpp  the archive: what is written to it, and what a caller sees of it
//   recall.cpp    a question recalls in all layers
//   reading.cpp   a ubatch recalls for itself in every layer, between the storage of its rows and its attention
//   rows.cpp      chosen rows come into the cells
//   cut.cpp       the text is cut at any position
//   carry.cpp     a session carries the rows

#pragma once

#include "api/status.h"
#include "archive/store.h"
#include "cache/core.h"
#include "cache/recall_devices.h"
#include "stages/recall.h"

#include <memory>
#include <string>
#include <vector>

struct llm_graph_context;

class restkv_recaller {
public:
    // Makes the archive of a cache whose layers are there. Throws restkv_error.
    explicit restkv_recaller(restkv_core & core);

    // ---- the archive ----------------------------------------------------------------------------

    // Write what the cells before n_doc hold and the archive does not. Throws restkv_error; the cells are as they were.
    void archive_tail(uint32_t n_doc);

    // The text from position p0 on is gone. Throws restkv_error.
    void forget_from(llama_pos p0);

    // The text is gone. What fails is said when the next rows are written.
    void forget_all() noexcept;

    restkv_archive_stats stats() const;

    // What attends on devices.
    const restkv_recall_devices & on_devices() const { return devices; }

    // ---- sessions (carry.cpp) -------------------------------------------------------------------

    // The rows stay whatever becomes of the text: who saves or loads a session carries them.
    bool held = false;

    // Throws restkv_error.
    void hold();

    // Whether the rows are those of the text in the cells.
    bool fits_text() const;

    // The archive, to be read, or to be written while it is held. Throws restkv_error.
    restkv_archive & rows(bool write);

    // ---- recall ---------------------------------------------------------------------------------

    // All layers choose among the positions before n_text, by the queries of a window; the cells from own_first to own_end
    // (numbers) hold the queries' own rows. Returns why layers kept of what they held instead, or "". Throws, and
    // `moved` tells whether the cells are as they were.
    std::string recall(const restkv_sequence::window & window, uint32_t n_text, uint32_t own_first, uint32_t own_end,
                       bool & moved);

    // The cells hold, of the positions before p0, what they held, and the last ones. Throws.
    void cut(llama_pos p0);

    // ---- reading --------------------------------------------------------------------------------

    bool  reading = false;
    float below   = 0.0f;  // 0, or a layer recalls where its query is less like that of its last recall

    // In the graph that is being built, layer `il` recalls by the queries q of the ubatch.
    void add_to(const llm_graph_context & graph, ggml_tensor * q, int il);

    // The first failure of a ubatch's recall since the last call.
    restkv_status take_failure();

    // Before the first eviction, which scores nothing here: the heads hold the first positions, until what is read next
    // recalls.
    void hold_first();

private:
    // A layer in a graph of llama.cpp.
    struct node {
        restkv_recaller * self;
        uint32_t          l;
    };

    // The rows that come into the cells of a KV head.
    struct wanted {
        const int32_t *      pos = nullptr;  // [n_new] ascending
        std::vector<int32_t> cells;          // [n_new] where they lie now, or -1: in the archive
    };

    // Whose recall the cells of a layer are.
    struct asker {
        llama_pos          pos_exact = -1;  // of the text then; -1: nobody's
        std::vector<float> q;               // [n_head][d_k] query of the last token that asked
    };

    // Buffers of one thread.
    struct own_thread {
        std::vector<uint8_t> rows;
        std::vector<float>   floats;
    };

    void                 forget_askers() noexcept;
    restkv_recall_params params() const;
    void                 look_at(uint32_t l, uint32_t n_text, uint32_t own_first, uint32_t own_end);
    std::vector<int32_t> live_of(uint32_t l, uint32_t h, uint32_t n_text) const;

    // All members of a team call these. chosen: [n_head_kv][n] positions. live_only: they lie in the cells.
    void fetch(uint32_t l, const int32_t * chosen, uint32_t n, bool live_only, restkv_member & member) noexcept;
    void put(uint32_t l, restkv_member & member) noexcept;

    void init_shared();
    void want(uint32_t l, const int32_t * chosen, uint32_t n, bool live_only, uint32_t n_threads);
    void fetch_block(uint32_t l, bool value, uint32_t from, own_thread & own);

    bool        asks_anew(uint32_t l, const ggml_tensor * q) const;
    void        remember(uint32_t l, const uint8_t * q, size_t q_head, llama_pos pos_exact);
    void        begin_ubatch(uint32_t l, const ggml_tensor * q);
    void        read_layer(uint32_t l, const ggml_tensor * q, restkv_member & member) noexcept;
    static void run_node(ggml_tensor * dst, int ith, int nth, void * userdata);

    restkv_core &                   core;
    std::unique_ptr<restkv_archive> archive;
    restkv_recall_devices           devices;
    std::vector<node>               nodes;   // [layers]
    std::vector<asker>              askers;  // [layers]
    restkv_team                     team;    // of the threads that compute llama.cpp's graphs

    // One layer at a time.
    restkv_recall_view      view;
    restkv_recall_work      work;
    std::vector<float>      asked;              // queries of a window, [n][n_head * d_k]
    std::vector<float>      sinks;              // [n_head], or empty
    std::vector<uint8_t>    behind;             // rows behind the archive's, copied from a device
    std::vector<wanted>     heads;              // [n_head_kv]
    std::vector<uint8_t>    copy_k, copy_v;     // cells, copied from a device
    const uint8_t *         cells_k = nullptr;  // rows of the cells
    const uint8_t *         cells_v = nullptr;
    uint8_t *               new_k   = nullptr;  // [n_new] rows as the cells have them
    uint8_t *               new_v   = nullptr;
    std::vector<uint8_t>    own_k, own_v;       // where they lie,
    ggml_backend_buffer_ptr shared;             // or, of layers on a device, where it reads them itself
    uint32_t                n_new   = 0;
    uint32_t                end_new = 0;        // position behind the last of them
    std::vector<own_thread> threads;
    bool                    active  = false;    // while reading: this layer recalls
    bool                    counted = false;    // likewise: a layer of this ubatch has
    int64_t                 t_start = 0;

    // While reading: the first failure.
    restkv_status status                   = RESTKV_OK;
    char          why[RESTKV_SENTENCE_MAX] = "";

    bool                 stale = false;  // the archive still has rows of a text that is gone
    restkv_archive_stats done  = {};
};
