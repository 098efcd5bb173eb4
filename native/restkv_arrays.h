// The stages on host arrays, for parity tests and research: a part of restkv.h, which includes it.

#pragma once

typedef struct restkv_score_args {
    restkv_params   params;  // budget, window and the scoring options; capacity is ignored
    uint32_t        n_head;
    uint32_t        n_head_kv;
    uint32_t        n_embd_head;
    uint32_t        n_cells;      // N
    uint32_t        n_embd_out;   // rows of W_o
    uint32_t        layer;        // methods random and lacache
    uint32_t        n_layer;      // method lacache: of how many layers
    uint32_t        cursor;       // method lacache: cell where the next rung starts; 0: after the sinks
    uint32_t        n_rows;       // queries given: those of the last n_rows cells; 0: window
    uint32_t        all_visible;  // method h2o: rows before the window see every cell, as in the published ReST-KV code
    int32_t         type_kv;      // ggml type of k and v: F32, F16, BF16, Q8_0 or Q4_0
    float           attn_scale;   // 0: 1 / sqrt(n_embd_head)
    float           softcap;      // of the logits; 0: none
    const float *   q;            // [n_head, n_rows, n_embd_head]
    const void *    k;            // [n_head_kv, N, n_embd_head]
    const void *    v;            // [n_head_kv, N, n_embd_head]
    const float *   wo;           // [n_embd_out, n_head * n_embd_head], or NULL
    const int32_t * pos;          // [n_head_kv, N] ascending text positions, or NULL: 0 .. N-1
    const float *   sinks;        // [n_head] logits of attention sinks, or NULL
} restkv_score_args;

typedef struct restkv_score_out {
    float *   raw;           // [n_head, N - window]
    float *   smoothed;      // [n_head, N - window]
    int32_t * kernel_sizes;  // [n_head]
    int32_t * shifts;        // [n_head]
    int32_t * indices;       // [n_head or n_head_kv, budget - window], ascending
} restkv_score_out;

RESTKV_API restkv_status restkv_score(const restkv_score_args * args, restkv_score_out * out);

// One recall of one layer on arrays.
typedef struct restkv_recall_args {
    uint32_t        n_head;
    uint32_t        n_head_kv;
    uint32_t        n_embd_head;
    uint32_t        n_queries;  // of the guide or the ubatch, at the positions row_pos
    uint32_t        n_archive;  // N: positions 0 .. N-1
    uint32_t        n_own;      // rows behind them, at the positions N .. N + n_own - 1
    uint32_t        n_rows;     // as in restkv_archive_params
    uint32_t        kernel;
    uint32_t        sinks;
    uint32_t        window;
    uint32_t        budget;
    uint32_t        n_threads;
    int32_t         type_k;      // ggml type of k and k_own: F32, F16, BF16, Q8_0 or Q4_0
    float           attn_scale;  // 0: 1 / sqrt(n_embd_head)
    float           softcap;     // of the logits; 0: none
    const float *   q;           // [n_head, n_queries, n_embd_head]
    const int32_t * row_pos;     // [n_queries] ascending: a query sees the rows up to its own position
    const void *    k;           // [N, n_head_kv, n_embd_head], as the archive keeps them
    const void *    k_own;       // [n_own, n_head_kv, n_embd_head]
    const float *   attn_sinks;  // [n_head] logits of attention sinks, or NULL
} restkv_recall_args;

// scores: [n_head_kv, N] after the average over `kernel` positions. chosen: [n_head_kv, min(budget, N)], ascending.
RESTKV_API restkv_status restkv_recall_score(const restkv_recall_args * args, float * scores, int32_t * chosen);

// The same by graphs of ggml, on the device of this name. tile_floats: logits that are held at a time, but for those of one
// KV head; 0: the default. RESTKV_UNSUPPORTED when the device lacks an op.
RESTKV_API restkv_status restkv_recall_score_on(const restkv_recall_args * args, const char * device,
                                                uint64_t tile_floats, float * scores, int32_t * chosen);

// restkv_score() by graphs of ggml. device: as ggml names it ("CPU", "CUDA0"). tile_floats: largest intermediate tensor; 0: the
// default. RESTKV_UNSUPPORTED when these settings have no graph or the device lacks an op.
RESTKV_API restkv_status restkv_score_on(const restkv_score_args * args, const char * device, uint64_t tile_floats,
                                         restkv_score_out * out);

// The n_keep largest of scores[n], ties to the lower index, ascending in out.
RESTKV_API restkv_status restkv_select(const float * scores, uint32_t n, uint32_t n_keep, int32_t * out);

// Past cells of each head of a layer, out[n_head]: `mean` per head in total, as its scores ask. rows: the heads' scores one
// after the other, n[h] of head h. floor: part of `mean` that is fixed; most: limit of a head, 0: none; normalize: heads
// whose scores are spread thin yield (AdaKV), unless a score is negative.
RESTKV_API restkv_status restkv_share(const float * rows, const uint32_t * n, uint32_t n_head, uint32_t mean,
                                      double floor, uint32_t most, bool normalize, uint32_t * out);

// Move the bytes [offset, offset + n_bytes) of row src[i] to row i, i ascending; src ascending and src[i] >= i.
RESTKV_API restkv_status restkv_compact(void * rows, size_t row_stride, size_t offset, size_t n_bytes,
                                        const int32_t * src, uint32_t n);
