// restkv.h: the only boundary between the patched llama.cpp library and its callers.
//
// A KV cache of fixed size: `capacity` cells per layer, of which `budget` survive an eviction.
// A cell's score says how much the layer's output changes when the cell goes.
//
// Every function that can fail returns a restkv_status, or says how it fails. Status and a sentence for people stay in
// restkv_last_status() and restkv_last_error(); each such function forgets those of the call before when it starts.
// Shapes are row-major, last axis contiguous.

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#    define RESTKV_API __declspec(dllexport)
#else
#    define RESTKV_API __attribute__((visibility("default")))
#endif

// Raised whenever a struct or a signature below changes.
#define RESTKV_ABI_VERSION 10

#define RESTKV_NAME_MAX   32
#define RESTKV_REASON_MAX 192
#define RESTKV_TEXT_MAX   128

#ifdef __cplusplus
extern "C" {
#endif

struct llama_context;
struct llama_model;

typedef enum restkv_status {
    RESTKV_OK          = 0,
    RESTKV_INVALID     = 1,  // an argument is out of range
    RESTKV_UNSUPPORTED = 2,  // this model, cache type or setting cannot be evicted
    RESTKV_NOTHING     = 3,  // the cache is within its budget: nothing to evict
    RESTKV_IO          = 4,  // the model's file could not be read
    RESTKV_NO_MEMORY   = 5,  // of the host or of a device, or the device failed
    RESTKV_GONE        = 6,  // what this needs is no longer in the cache: read the text again
    RESTKV_STATE       = 7,  // a saved state is damaged, or of another cache
    RESTKV_ARCHIVE     = 8,  // rows could not be written to the archive, or those in it are damaged
} restkv_status;

typedef enum restkv_pooling {
    RESTKV_POOLING_NONE     = 0,
    RESTKV_POOLING_AVG      = 1,
    RESTKV_POOLING_MAX      = 2,
    RESTKV_POOLING_ADAPTIVE = 3,
} restkv_pooling;

typedef enum restkv_metric_mode {
    RESTKV_METRIC_AFTER  = 0,  // aggregate the attention of the window, then one distance per cell
    RESTKV_METRIC_BEFORE = 1,  // one distance per query and cell, then aggregate
} restkv_metric_mode;

// What a cell's score is made of (method restkv; the ablation of its paper).
typedef enum restkv_indicator {
    RESTKV_INDICATOR_RECONSTRUCTION = 0,  // change of the layer's output
    RESTKV_INDICATOR_ATTENTION      = 1,
    RESTKV_INDICATOR_ATTENTION_V    = 2,  // attention times the length of the value
} restkv_indicator;

// How the rows of the window become one (method restkv).
typedef enum restkv_rows {
    RESTKV_ROWS_AUTO         = 0,  // as use_ema says: EMA or MEAN
    RESTKV_ROWS_EMA          = 1,  // the newest row weighs alpha
    RESTKV_ROWS_MEAN         = 2,
    RESTKV_ROWS_INVERTED_EMA = 3,  // the oldest row weighs alpha
    RESTKV_ROWS_LAST         = 4,  // the newest row alone
    RESTKV_ROWS_MAX          = 5,  // the largest, or their mean over the cells (not with RECONSTRUCTION)
    RESTKV_ROWS_SUM          = 6,  // not divided by their number (not with RECONSTRUCTION)
} restkv_rows;

typedef enum restkv_reduce {
    RESTKV_REDUCE_NONE = 0,  // one set per query head (restkv_score only)
    RESTKV_REDUCE_MEAN = 1,
    RESTKV_REDUCE_MAX  = 2,
} restkv_reduce;

// How an eviction is run. What a layer cannot do is done another way, and events and stats say so.
typedef enum restkv_stages {
    RESTKV_STAGES_AUTO  = 0,  // cells in host memory: fused; on a device: graph, or host where an op is missing
    RESTKV_STAGES_FUSED = 1,  // our own kernels, on the CPU; cells on a device are copied to the host
    RESTKV_STAGES_GRAPH = 2,  // as graphs of ggml on the backend that holds the cells, host memory too
    RESTKV_STAGES_HOST  = 3,  // a copy on the host, a layer at a time
} restkv_stages;

typedef enum restkv_allocation {
    RESTKV_ALLOCATION_UNIFORM = 0,
    RESTKV_ALLOCATION_PYRAMID = 1,  // every layer has a budget, and rows, of its own
    RESTKV_ALLOCATION_ADA     = 2,  // the KV heads of a layer share their budgets as their scores ask
} restkv_allocation;

// How cells are scored and how many survive. The defaults live with the caller, not here.
typedef struct restkv_params {
    char     method[RESTKV_NAME_MAX];  // a name of restkv_method_name()
    uint32_t budget;                   // cells per KV head that survive an eviction, window included
    uint32_t capacity;                 // physical cells per layer
    uint32_t window;                   // last positions: their queries score, their cells are kept
    uint32_t kernel;                   // pooling kernel, odd; the floor of the adaptive one
    uint32_t scale;                    // positions of drift per kernel step (adaptive pooling)
    int32_t  pooling;                  // restkv_pooling
    int32_t  metric_mode;              // restkv_metric_mode
    int32_t  reduce;                   // restkv_reduce
    float    alpha;                    // weight of the newest row; negative: 2 / (window + 1)
    float    tau;                      // exponent of the output distance (after and use_wo only)
    uint8_t  use_wo;
    uint8_t  use_norm;
    uint8_t  use_ema;
    uint8_t  stages;     // restkv_stages
    uint32_t n_threads;  // 0: all cores
    uint64_t seed;       // method random
    int32_t  indicator;  // restkv_indicator
    int32_t  rows;       // restkv_rows
    uint32_t n_ring;     // queries that are remembered, at least the window; 0: window
    uint32_t sinks;      // method lacache: first cells that are never dropped
    uint32_t span;       // method lacache: layers in which a cell survives a pass; 0: half of them
    uint32_t overlap;    // method lacache: layers that neighbouring rungs share
} restkv_params;

RESTKV_API uint32_t restkv_abi_version(void);

// The last failure on the calling thread: RESTKV_OK and "" when there is none.
RESTKV_API restkv_status restkv_last_status(void);
RESTKV_API const char *  restkv_last_error(void);

// Forget it. Call this before a function of llama.cpp in which the cache may fail: llama_init_from_model, llama_decode
// (a status of 1 without a failure of ours: the batch is larger than the free cells), llama_memory_seq_rm and
// llama_state_set_data.
RESTKV_API void restkv_clear_error(void);

RESTKV_API uint32_t     restkv_method_count(void);
RESTKV_API const char * restkv_method_name(uint32_t i);  // NULL beyond the end
RESTKV_API const char * restkv_method_summary(uint32_t i);

// ---- a model, before a context exists ----------------------------------------------------------

typedef struct restkv_model_info {
    char     arch[RESTKV_NAME_MAX];
    char     refusal[256];       // why this model cannot be evicted; "" when it can
    uint32_t n_layer;            // layers with a cache that evicts (full attention)
    uint32_t n_layer_swa;        // layers with a sliding window, left alone
    uint32_t n_layer_recurrent;  // layers without a cache, left alone
    uint32_t n_head;             // of the first evicting layer
    uint32_t n_head_kv;
    uint32_t n_embd_head_k;
    uint32_t n_embd_head_v;
    uint32_t n_ctx_train;
    uint64_t bytes_per_cell;  // K and V of one cell, summed over the evicting layers
    uint64_t bytes_window;    // ring of queries, per row of the window, summed over the layers
} restkv_model_info;

// Works on a model loaded with no_alloc. type_k and type_v are ggml types.
RESTKV_API restkv_status restkv_model_probe(const struct llama_model * model, int32_t type_k, int32_t type_v,
                                            restkv_model_info * out);

// What tells one model from another, and a model from its fine-tunes: text of less than RESTKV_TEXT_MAX bytes that starts
// with the number of its recipe. From the metadata and sampled bytes of every tensor, so some milliseconds; the same model
// has the same in one file and in several. path_model: a GGUF file, the first file of a split model; a LoRA works too.
RESTKV_API restkv_status restkv_fingerprint(const char * path_model, char * out, size_t n_max);

// ---- a context with a fixed cache --------------------------------------------------------------

// The next context that this thread creates gets a cache of params->capacity cells that evicts.
// path_model: the GGUF file, read for W_o when use_wo is set (first file of a split model). path_cache: a folder for the
// matrices made from W_o, or NULL. Consumed by the context, or dropped by restkv_disarm().
RESTKV_API restkv_status restkv_arm(const restkv_params * params, const char * path_model, const char * path_cache);
RESTKV_API void          restkv_disarm(void);

// How the budget of the armed cache is shared out; without it every layer and every head has the same.
typedef struct restkv_share_params {
    int32_t          kind;      // restkv_allocation
    uint32_t         n_layer;   // pyramid: evicting layers
    const uint32_t * budgets;   // pyramid: [n_layer] cells per KV head, window included; their sum is n_layer * budget
    int32_t          n_past;    // pyramid: past cells of every layer, the rest is window; -1: the window is the same
    uint32_t         head_max;  // ada: most cells of a KV head, window included: the rows of each layer without reserve
    double           floor;     // ada: part of its plain share that every head keeps
} restkv_share_params;

// After restkv_arm(), in the same thread.
RESTKV_API restkv_status restkv_arm_shares(const restkv_share_params * shares);

typedef enum restkv_place {
    RESTKV_PLACE_NONE = 0,  // rows that are evicted are gone
    RESTKV_PLACE_RAM  = 1,
    RESTKV_PLACE_FILE = 2,
} restkv_place;

// The archive of the armed cache: every row of K and V that an evicting layer has held, by position, outside the cells.
typedef struct restkv_archive_params {
    int32_t      place;    // restkv_place
    int32_t      type_k;   // ggml types of its rows: -1 the cache's, Q8_0, or Q4_0 where the cache is quantized too
    int32_t      type_v;
    uint32_t     n_ctx;    // most positions; the archive never grows beyond them
    const char * path;     // RESTKV_PLACE_FILE: its file, which is made anew
    uint32_t     n_rows;   // of a recall: queries that speak, per query head
    uint32_t     kernel;   // of a recall: positions that are averaged, odd
    uint32_t     sinks;    // of a recall: first positions that are always chosen
    uint32_t     n_guide;  // most tokens of a guide whose queries are remembered
} restkv_archive_params;

// After restkv_arm(), in the same thread. With an archive
// - a row is written to it before it can be dropped: evictions, also those of llama_decode, fail with RESTKV_ARCHIVE, and
//   nothing has changed, where that is not possible;
// - llama_memory_seq_rm cuts at any position, as far as sliding-window and recurrent layers can: the cells then hold what
//   they held before the cut, and the last positions before it.
RESTKV_API restkv_status restkv_arm_archive(const restkv_archive_params * archive);

// Evict now, down to the budget. The last n_guide positions are a guide: the last `window` queries score, which are the
// guide's (and, when it is shorter, those before it); then its cells are dropped and the position counter goes back.
// After RESTKV_NO_MEMORY the cache may be empty: the message says so.
RESTKV_API restkv_status restkv_evict(struct llama_context * ctx, uint32_t n_guide);

// Choose the cells of every evicting layer again, among all that was read, by the queries of the last n_guide positions;
// then drop these (0: the last `window` queries choose, and nothing is dropped). A position's score is its attention, the
// maximum over the queries and the mean over the heads of a group, averaged over `kernel` positions; the first `sinks` and
// the last `window` positions are always chosen. RESTKV_NOTHING when everything that was read is in the cells: then only
// the guide is dropped. After RESTKV_ARCHIVE the cache holds what it held, or what of that fits the budget.
RESTKV_API restkv_status restkv_recall(struct llama_context * ctx, uint32_t n_guide);

// on: from now on every ubatch that llama_decode runs recalls for itself. In every evicting layer, after its rows are
// stored and before it attends, the cells are chosen again by its own queries of that layer; when no cell is free, the
// rows since the last eviction are dropped without being scored (they are in the archive). below: 0, or a bound of at
// most 1: a layer recalls only where the last query of the ubatch is less like the last one that chose its cells (the
// mean over the heads of their cosine), or where none has chosen them since the last eviction or the last cut before it.
// Returns the first failure of a recall since the last call, which has left the cells of its layer and of those behind it
// as they were: cut what was read since.
RESTKV_API restkv_status restkv_set_reading(struct llama_context * ctx, bool on, float below);

// What the archive holds, and what was recalled since the context was made.
typedef struct restkv_archive_stats {
    int32_t  place;  // restkv_place
    int32_t  type_k;
    int32_t  type_v;
    uint32_t n_rows;      // positions that are archived
    uint64_t bytes;       // that it can grow to
    uint64_t bytes_host;  // of them and of its buffers, in memory now
    uint64_t bytes_written;
    uint64_t bytes_read;
    uint64_t us_write;
    uint64_t n_recalls;  // of a question or of a ubatch, all layers counted as one
    uint64_t n_layers;   // that recalled in them, added up
    uint64_t n_chosen;   // cells, summed over layers and KV heads
    uint64_t n_copied;   // of them, those that came from the archive
    uint64_t us_score;   // wall time of all layers
    uint64_t us_copy;
    uint32_t n_layer;
    uint32_t n_layer_graph;              // of them, those that attend as graphs on the backend that holds their cells
    char     devices[RESTKV_NAME_MAX];   // that run these graphs, as ggml names them
    char     reason[RESTKV_REASON_MAX];  // why not all layers that should attend there do; "" when they do
} restkv_archive_stats;

// RESTKV_NOTHING: this cache has no archive.
RESTKV_API restkv_status restkv_get_archive(struct llama_context * ctx, restkv_archive_stats * out);

typedef struct restkv_stats {
    uint32_t capacity;
    uint32_t budget;
    uint32_t window;
    uint32_t n_layer;                    // evicting layers
    uint32_t n_head_kv;                  // largest of the evicting layers
    uint32_t n_cells;                    // cells in use per KV head and layer, on average
    int32_t  pos_next;                   // position of the next token
    int32_t  pos_exact;                  // seq_rm from here on is exact; before it is refused
    uint64_t n_evictions;
    uint64_t n_evicted;                  // cells dropped so far, per KV head and layer
    uint64_t bytes_kv;                   // K and V tensors of the evicting layers
    uint64_t bytes_ring;
    uint64_t bytes_table;                // positions per layer, KV head and cell
    uint64_t bytes_wo;                   // matrices made from W_o
    uint64_t bytes_sums;                 // attention added up per layer, KV head and cell (method h2o)
    uint64_t bytes_scratch;
    uint64_t bytes_graph;                // inputs, results, factors and work memory of the graphs, on devices and host
    uint32_t n_layer_graph;              // evicting layers whose stages run as graphs
    uint32_t n_layer_host;               // whose cells are copied to the host
    char     devices[RESTKV_NAME_MAX];   // that run the graphs, as ggml names them: "CUDA0,CUDA1"
    char     reason[RESTKV_REASON_MAX];  // why not all layers that should run as graphs do; "" when they do
    uint32_t n_free;                     // cells that are free until the next eviction
    uint32_t reserved;
} restkv_stats;

RESTKV_API restkv_status restkv_get_stats(struct llama_context * ctx, restkv_stats * out);

// Times are per stage: of all threads, divided by their number. Layers that run as graphs overlap: of these us_attend and
// us_compact are what the caller's thread spends on handing work to the device and waiting for it; while the device works
// behind score, smooth and select, only those count.
typedef struct restkv_event {
    uint64_t id;             // 0, 1, 2, ...
    int32_t  pos_next;       // position of the next token when it happened, guide excluded
    uint32_t n_guide;
    uint32_t n_cells;        // before
    uint32_t n_kept;         // after
    uint32_t n_layer;
    uint32_t n_layer_graph;  // layers scored and moved by graphs on the backend that holds their cache
    uint32_t n_layer_host;   // layers scored through a copy on the host
    uint32_t n_rows;         // rows of the window that scored
    uint32_t n_threads;
    uint64_t bytes_moved;    // K and V
    uint64_t us_total;       // wall time
    uint64_t us_attend;
    uint64_t us_score;
    uint64_t us_smooth;
    uint64_t us_select;
    uint64_t us_compact;
} restkv_event;

// The last events, oldest first; at most 256 are kept. Returns how many were written; 0 with restkv_last_error() too.
RESTKV_API uint32_t restkv_get_events(struct llama_context * ctx, restkv_event * out, uint32_t n_max);

// Positions that a KV head of a layer (model layer index) holds, ascending. Returns their number (out may be NULL; at
// most n_max are written), or -1 with restkv_last_error().
RESTKV_API int32_t restkv_kept(struct llama_context * ctx, uint32_t layer, uint32_t head_kv, int32_t * out,
                               uint32_t n_max);

// What the last n_rows queries look at (or as many of them as are remembered), among the cells that the evicting layers
// hold now. weights[p], of the positions p < n: raised to the largest attention, the model's own, that a query head of any
// layer pays to p in any of these rows; what is in no cell stays as it is. So the caller begins with zeros, and calls about
// parts of one answer add up. n_looked: how many queries there were; may be NULL. Memory: what one layer of an eviction
// takes; of cells on a device the keys of one layer at a time are copied. RESTKV_UNSUPPORTED where no queries are kept,
// RESTKV_GONE where those are no longer there.
RESTKV_API restkv_status restkv_look(struct llama_context * ctx, uint32_t n_rows, float * weights, uint32_t n,
                                     uint32_t * n_looked);

// What a context takes, by the device that holds it. All sizes are of what was allocated.
typedef struct restkv_memory {
    char     device[RESTKV_NAME_MAX];  // as ggml names it; memory of the host is that of "CPU"
    uint32_t n_layer;                  // evicting layers whose cells lie here
    uint64_t bytes_weights;            // of the model; on the host also what is mapped from its file
    uint64_t bytes_kv;                 // K and V of the evicting layers
    uint64_t bytes_other;              // caches that do not evict: sliding windows, recurrent states; method full: all
    uint64_t bytes_ring;
    uint64_t bytes_wo;                 // factors of W_o; the host keeps its copy beside those of the graphs
    uint64_t bytes_table;              // positions, and the votes of method h2o
    uint64_t bytes_graph;              // inputs, results and work memory of the graphs
    uint64_t bytes_compute;            // work buffers of llama.cpp
    uint64_t memory_free;              // of the device, now; 0: not known
    uint64_t memory_total;
} restkv_memory;

// Writes at most n_max, and returns how many there are; 0 with restkv_last_error().
RESTKV_API uint32_t restkv_get_memory(struct llama_context * ctx, restkv_memory * out, uint32_t n_max);

// For llama_set_abort_callback: true when the int32 at `flag` is not zero.
RESTKV_API bool restkv_abort_on_flag(void * flag);

#include "restkv_arrays.h"
#include "restkv_sessions.h"

// ---- devices -----------------------------------------------------------------------------------

typedef enum restkv_device_kind {
    RESTKV_DEVICE_CPU   = 0,
    RESTKV_DEVICE_GPU   = 1,
    RESTKV_DEVICE_IGPU  = 2,  // a GPU in the memory of the host
    RESTKV_DEVICE_ACCEL = 3,  // helps the CPU, holds no cache
    RESTKV_DEVICE_META  = 4,  // stands for several others
} restkv_device_kind;

typedef struct restkv_device {
    char     name[RESTKV_NAME_MAX];         // as ggml names it: "CUDA0"
    char     description[RESTKV_TEXT_MAX];  // "NVIDIA ..."
    char     backend[RESTKV_NAME_MAX];      // "CUDA"
    char     bus[RESTKV_NAME_MAX];          // PCI address, or ""
    int32_t  kind;                          // restkv_device_kind
    uint32_t host_memory;                   // 1: the host can read its memory
    uint64_t memory_free;
    uint64_t memory_total;
} restkv_device;

RESTKV_API uint32_t      restkv_device_count(void);
RESTKV_API restkv_status restkv_get_device(uint32_t i, restkv_device * out);

// Contexts that are made from now on in this process run no graphs on this device: its layers go through the host, and
// their stats give the reason. reason NULL or "": it is trusted again, as every device is at first.
RESTKV_API restkv_status restkv_distrust(const char * device, const char * reason);

typedef struct restkv_layer_shape {
    uint32_t n_head;
    uint32_t n_head_kv;
    uint32_t n_embd_head_k;
    uint32_t n_embd_head_v;
    int32_t  type_k;   // ggml types
    int32_t  type_v;
    uint32_t n_cells;  // rows of the layer
    uint32_t n_kept;   // most cells of a KV head that survive an eviction
    bool     hides;    // KV heads may hold different numbers of cells
} restkv_layer_shape;

// What the graphs take that evict layers of this shape on a device, as restkv_memory counts it when they are loaded
// (bytes_graph), on the device and on the host; allocates nothing. Both 0 where such layers have no graph.
RESTKV_API restkv_status restkv_plan_graph(const restkv_params * params, const restkv_layer_shape * shape,
                                           const char * device, uint64_t * bytes_device, uint64_t * bytes_host);

// The same of the graphs that recall from an archive like this, in layers of this shape; its place and path do not matter.
RESTKV_API restkv_status restkv_plan_recall(const restkv_params * params, const restkv_archive_params * archive,
                                            const restkv_layer_shape * shape, const char * device,
                                            uint64_t * bytes_device, uint64_t * bytes_host);

// Move rows of K and V on a device, as an eviction does: of every KV head, cell kept[i] goes to i. k and v: the rows of
// a cache, [n_cells][n_head_kv][one head's row of n_embd_head values in the ggml type], moved in place. kept:
// [n_head_kv, n_kept], ascending, kept[i] >= i. RESTKV_UNSUPPORTED when the device lacks an op.
RESTKV_API restkv_status restkv_compact_on(const char * device, int32_t type_kv, uint32_t n_head_kv,
                                           uint32_t n_embd_head, uint32_t n_cells, void * k, void * v,
                                           const int32_t * kept, uint32_t n_kept, uint64_t tile_floats);

// The shortest of several rounds, in microseconds, for one layer.
typedef struct restkv_device_times {
    uint64_t us_attend;     // attend and score as a graph, and what comes back
    uint64_t us_choose;     // smooth and select, on one thread of the host
    uint64_t us_compact;    // rows moved
    uint64_t bytes_attend;  // of K and V
    uint64_t bytes_moved;   // read and written
} restkv_device_times;

// Time restkv_score_on() and the moves of its sets. rounds: at least 1, after one that is not counted.
RESTKV_API restkv_status restkv_time_on(const restkv_score_args * args, const char * device, uint32_t rounds,
                                        restkv_device_times * out);

// The yardstick of evictions: the shortest of `rounds` copies of n_bytes within the memory of a device, in microseconds.
// RESTKV_UNSUPPORTED when the device cannot copy.
RESTKV_API restkv_status restkv_copy_on(const char * device, uint64_t n_bytes, uint32_t rounds, uint64_t * us);

#ifdef __cplusplus
}
#endif
